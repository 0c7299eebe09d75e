//! What befalls hosts: they freeze, die, come back, are cut off, lose sight of each other.

use super::{Happening, World};
use crate::message::SessionId;
use crate::network::HostId;
use crate::plan::{Event, Role};

impl World {
    pub(super) fn befall(&mut self, index: usize) {
        let event = self.plan.events[index].1.clone();
        let now = self.now();
        self.last_change = now;
        self.trace.add(now, format_args!("befalls {event:?}"));
        match event {
            Event::Freeze(host) => self.hosts[host as usize].frozen = true,
            Event::Thaw(host) => self.hosts[host as usize].frozen = false,
            Event::Kill(host) => self.kill(HostId(host)),
            Event::Return(host) => self.come_back(HostId(host)),
            Event::Cut(host) => self.hosts[host as usize].cut = true,
            Event::Partition(part) => {
                for host in part {
                    self.hosts[host as usize].part = 1;
                }
            }
            Event::Heal => self.hosts.iter_mut().for_each(|host| host.part = 0),
            Event::UpstreamDies => self.kill_upstream(),
            Event::UpstreamStalls => self.stall_upstream(true),
            Event::UpstreamReturns => self.stall_upstream(false),
        }
        self.block_flows();
        self.let_parked_go();
    }

    /// Halts the flows that can't move now, and lets go those that can.
    fn block_flows(&mut self) {
        let now = self.now();
        for id in 0..self.sessions.len() {
            let session = &self.sessions[id];
            let (holder, asker, flow) = (session.holder, session.asker, session.flow);
            let blocked = self.host(holder).frozen || !self.reaches(holder, asker);
            self.network.block(flow, blocked, now);
        }
        self.block_streams();
    }

    /// What couldn't get through is tried again; what still can't is parked anew.
    fn let_parked_go(&mut self) {
        for happening in std::mem::take(&mut self.parked) {
            self.agenda.after(0, happening);
        }
        for host in 0..self.hosts.len() as u32 {
            self.agenda.after(0, Happening::Uploads(HostId(host)));
            self.agenda.after(0, Happening::TellsHave(HostId(host)));
        }
    }

    /// A host is gone: its fetch, what it serves, and all its connections.
    fn kill(&mut self, host: HostId) {
        let now = self.now();
        self.stop_stream(host);
        let entry = self.host_mut(host);
        if std::mem::replace(&mut entry.gone, true) {
            return;
        }
        self.ledger.gone(host);
        self.checker.handle_end_of_attempt(host);
        for index in 0..self.sessions.len() {
            let id = SessionId(index as u32);
            let session = &self.sessions[index];
            let (asker, holder, alive) = (session.asker, session.holder, session.alive);
            if !alive || (asker != host && holder != host) {
                continue;
            }
            let flow = session.flow;
            self.network.reset(flow, now);
            let wait = self.travel(asker, holder);
            if holder == host {
                self.agenda.after(wait, Happening::Broken(id));
                self.forget_asker(id);
            } else {
                self.sessions[index].alive = false;
                self.agenda.after(wait, Happening::Abandoned(id));
            }
        }
    }

    /// A host is back with what it had.
    fn come_back(&mut self, host: HostId) {
        if !std::mem::replace(&mut self.host_mut(host).gone, false) {
            return;
        }
        self.ledger.back(host);
        self.find_again(host);
        let ended = self.host(host).fetching.as_ref().is_some_and(|f| f.is_over());
        if matches!(self.host(host).role, Role::Leech { .. }) && !ended {
            self.agenda.after(0, Happening::Starts(host));
        }
    }
}
