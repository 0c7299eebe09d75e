//! What a fetch is told: replies of peers, octets on their way, verdicts. Each event is checked as
//! the node checks it before the machine hears of it.

use super::{Happening, World};
use crate::agenda::Nanos;
use crate::content::{Listing, NAR_HASH, OTHER_HASH, Version};
use crate::machine::Hint;
use crate::message::{Reply, Request, SessionId};
use crate::network::HostId;
use crate::plan::Role;
use narswarm_protocol::hash::{PieceHash, Root};
use narswarm_protocol::piece_set::PieceSet;

impl World {
    /// A peer was found.
    pub(super) fn hear_of(&mut self, host: HostId, attempt: u32, peer: HostId) {
        if !self.is_current(host, attempt) {
            return;
        }
        let round_trip = 2 * self.one_way(host, peer);
        let now = self.now();
        let network = self.plan.hosts[peer.0 as usize].network;
        let complete = match self.host(peer).role {
            Role::Seed => true,
            Role::Leech { .. } => self.host(peer).held.is_all(),
        };
        let root = self.host(peer).shown().filter(|_| complete);
        let root = root.map(|version| self.content.listing(version).root);
        let Some(fetching) = self.fetching_mut(host) else { return };
        let Some(source) = fetching.meet(peer, now) else { return };
        let hint = Hint { root, round_trip, network, complete };
        fetching.machine.handle_peer(source, hint, now);
        self.trace.add(now, format_args!("{host} peer {source:?} is {peer}"));
        self.pump(host);
    }

    pub(super) fn hear_of_no_more(&mut self, host: HostId, attempt: u32) {
        if self.is_current(host, attempt) {
            let now = self.now();
            self.trace.add(now, format_args!("{host} discovery done"));
            self.with_machine(host, |machine| machine.handle_discovery_done(now));
        }
    }

    /// The conversation of a reply, if the asker still listens.
    fn listening(&mut self, id: SessionId) -> Option<HostId> {
        let session = self.session(id);
        let asker = session.asker;
        (session.alive && self.is_current(asker, session.attempt)).then_some(asker)
    }

    pub(super) fn hear_reply(&mut self, id: SessionId, reply: Reply) {
        let (asker, holder) = (self.session(id).asker, self.session(id).holder);
        if !self.reaches(holder, asker) {
            return self.parked.push(Happening::Told(id, reply));
        }
        self.hear_progress_now(id);
        if self.listening(id).is_none() {
            if let Reply::Piece { index, .. } = reply {
                self.ledger.useless(asker, self.content.layout().piece_len(index) as u64);
            }
            return;
        }
        let now = self.now();
        let source = self.session(id).source;
        match reply {
            Reply::Opened { version, broken, held } => self.hear_opened(id, version, broken, held),
            Reply::Refused { busy } => {
                self.trace.add(now, format_args!("{asker} {source:?} refused busy={busy}"));
                self.checker.handle_closed(asker, id);
                self.with_machine(asker, |machine| machine.handle_refused(source, busy, now));
            }
            Reply::Have(ranges) => {
                self.checker.handle_have(asker, id, &ranges);
                self.trace.add(now, format_args!("{asker} {source:?} have {ranges:?}"));
                self.with_machine(asker, |machine| machine.handle_have(source, &ranges, now));
            }
            Reply::Missing(index) => {
                self.checker.handle_missing(asker, id, index);
                self.trace.add(now, format_args!("{asker} {source:?} missing {index}"));
                self.with_machine(asker, |machine| machine.handle_missing(source, index, now));
            }
            Reply::Piece { index, piece } => self.hear_piece(id, index, piece),
        }
    }

    fn hear_opened(&mut self, id: SessionId, version: Version, broken: bool, held: PieceSet) {
        let now = self.now();
        let (asker, source) = (self.session(id).asker, self.session(id).source);
        let mut listing = self.content.listing(version).clone();
        if broken {
            listing = Listing { root: Root([0xbd; 32]), ..listing };
        }
        self.sessions[id.0 as usize].version = Some(version);
        let holder = self.session(id).holder;
        let network = self.plan.hosts[holder.0 as usize].network;
        let witness = self.host(holder).nature.is_honest() && held.is_all();
        self.checker.handle_opened(asker, id, &held);
        if version == Version::True && witness {
            self.checker.handle_witness(asker, id, network);
        }
        self.trace.add(now, format_args!("{asker} {source:?} opened {version:?} {held:?}"));
        self.with_machine(asker, |machine| machine.handle_opened(source, &listing, held, now));
    }

    fn hear_piece(&mut self, id: SessionId, index: u32, piece: PieceHash) {
        let now = self.now();
        let (asker, source) = (self.session(id).asker, self.session(id).source);
        let bytes = self.content.layout().piece_len(index) as u64;
        self.checker.handle_piece(asker, id, index);
        let Some(version) = self.session(id).version else { return };
        let fits = self.content.piece(version, index) == piece;
        let Some(fetching) = self.fetching_mut(asker) else { return };
        if !fits && !fetching.machine.accepts_garbage() {
            fetching.machine.handle_bad_piece(source, index, now);
            self.trace.add(now, format_args!("{asker} {source:?} bad piece {index}"));
            self.ledger.useless(asker, bytes);
            return self.pump(asker);
        }
        let had = self.host(asker).held.contains(index);
        let Some(fetching) = self.fetching_mut(asker) else { return };
        let new = fetching.machine.handle_piece(source, index, now);
        self.trace.add(now, format_args!("{asker} {source:?} piece {index} new={new}"));
        match (new, had) {
            (true, _) => {
                self.ledger.from_peer(asker, bytes);
                self.hold(asker, index, piece);
            }
            (false, true) => self.ledger.duplicate(asker, bytes),
            (false, false) => self.ledger.useless(asker, bytes),
        }
        self.pump(asker);
    }

    /// Keeps a piece that the machine has taken.
    pub(super) fn hold(&mut self, host: HostId, index: u32, piece: PieceHash) {
        let now = self.now();
        let entry = self.host_mut(host);
        entry.pieces[index as usize] = Some(piece);
        entry.held.insert(index);
        self.ledger.holds(host, self.hosts[host.0 as usize].held.len(), now);
        self.checker.handle_gain(host, now);
        self.has_more(host);
    }

    /// What has come through a flow since it was last looked at, now that a message has arrived:
    /// the message itself at least.
    fn hear_progress_now(&mut self, id: SessionId) {
        let now = self.now();
        let session = &mut self.sessions[id.0 as usize];
        let departed = self.network.departed(session.flow, now);
        let bytes = departed.saturating_sub(session.seen);
        session.seen = session.seen.max(departed);
        self.hear_progress(id, bytes);
    }

    pub(super) fn hear_progress(&mut self, id: SessionId, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let Some(asker) = self.listening(id) else { return };
        let now = self.now();
        self.checker.handle_octets(asker, now);
        let source = self.session(id).source;
        self.trace.add(now, format_args!("{asker} {source:?} {bytes} octets"));
        self.with_machine(asker, |machine| machine.handle_progress(source, bytes, now));
    }

    /// The first octets of a piece have come.
    pub(super) fn hear_begun(&mut self, id: SessionId, index: u32) {
        let (asker, holder) = (self.session(id).asker, self.session(id).holder);
        if !self.reaches(holder, asker) || self.listening(id).is_none() {
            return;
        }
        let now = self.now();
        self.checker.handle_octets(asker, now);
        let source = self.session(id).source;
        self.trace.add(now, format_args!("{asker} {source:?} begins {index}"));
        self.with_machine(asker, |machine| machine.handle_begun(source, index, now));
    }

    /// Looks at all flows to a fetch, as the node does a few times a second.
    pub(super) fn look(&mut self, host: HostId, attempt: u32) {
        if !self.is_current(host, attempt) {
            return;
        }
        let now = self.now();
        let sessions = self.fetching_mut(host).map(|f| f.sessions()).unwrap_or_default();
        for id in sessions {
            let session = &mut self.sessions[id.0 as usize];
            let departed = self.network.departed(session.flow, now);
            let bytes = departed.saturating_sub(session.seen);
            session.seen = session.seen.max(departed);
            let (asker, holder) = (session.asker, session.holder);
            if bytes > 0 && self.reaches(holder, asker) {
                let wait = self.one_way(holder, asker);
                self.agenda.after(wait, Happening::Came { session: id, bytes });
            }
        }
        self.look_at_upstream(host);
        self.judge_gap(host);
        self.look_again(host, attempt);
    }

    pub(super) fn hear_broken(&mut self, id: SessionId) {
        let Some(asker) = self.listening(id) else { return };
        let now = self.now();
        let source = self.session(id).source;
        self.checker.handle_closed(asker, id);
        self.trace.add(now, format_args!("{asker} {source:?} lost"));
        if let Some(fetching) = self.fetching_mut(asker) {
            fetching.broken(source, now);
            self.pump(asker);
        }
    }

    /// The whole nar has been hashed.
    pub(super) fn hear_verdict(&mut self, host: HostId, attempt: u32) {
        if !self.is_current(host, attempt) || !self.host(host).held.is_all() {
            return;
        }
        let now = self.now();
        let is_true = self.holds_the_truth(host);
        let found = if is_true { NAR_HASH } else { OTHER_HASH };
        self.trace.add(now, format_args!("{host} hashed right={is_true}"));
        self.with_machine(host, |machine| machine.handle_nar_hash(&found, now));
    }

    /// Whether everything that a host holds is of the true nar, and it holds all.
    pub(super) fn holds_the_truth(&self, host: HostId) -> bool {
        let pieces = self.host(host).pieces.iter();
        (0..)
            .zip(pieces)
            .all(|(index, piece)| piece.is_some_and(|piece| self.content.is_true(index, piece)))
    }

    /// Time has come for the machine.
    pub(super) fn wake(&mut self, host: HostId, attempt: u32) {
        if !self.is_current(host, attempt) {
            return;
        }
        let now = self.now();
        let Some(fetching) = self.fetching_mut(host) else { return };
        fetching.wake = None;
        if fetching.machine.poll_timeout(now).is_some_and(|at| at <= now) {
            fetching.machine.handle_timeout(now);
            self.checker.handle_timer(host, now);
            self.trace.add(now, format_args!("{host} timeout"));
        }
        self.pump(host);
    }

    /// Whether this attempt of a host's fetch is the one that runs.
    pub(super) fn is_current(&self, host: HostId, attempt: u32) -> bool {
        let entry = self.host(host);
        !entry.gone
            && entry
                .fetching
                .as_ref()
                .is_some_and(|fetching| fetching.attempt == attempt && !fetching.is_over())
    }

    /// Asks no more in a conversation.
    pub(super) fn close(&mut self, id: SessionId) {
        if std::mem::replace(&mut self.sessions[id.0 as usize].alive, false) {
            self.ask(id, Request::Close);
        }
    }

    /// How long something takes one way, for the driver's own measurements.
    pub(super) fn distance(&self, a: HostId, b: HostId) -> Nanos {
        self.one_way(a, b)
    }
}
