//! What hosts give to others: the holder's side of a conversation. Which piece goes to whom next
//! is decided by the protocol's own [`Uploads`].

use super::{Happening, Host, Parcel, World};
use crate::agenda::{MILLI, Nanos, nanos, time};
use crate::content::{GARBAGE, Version};
use crate::message::{Reply, Request, SessionId};
use crate::network::HostId;
use crate::plan::{Nature, Role};
use narswarm_protocol::fetch::Time;
use narswarm_protocol::hash::PieceHash;
use narswarm_protocol::piece::PieceLayout;
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::upload::{AskerId, Give, UploadConfig, Uploads};
use std::collections::BTreeMap;

/// How long a holder gathers what it has got before it tells its askers, as the node does it.
const HAVE_EVERY: Nanos = 100 * MILLI;

/// How long a holder that has no piece list yet lets an asker wait before it refuses.
const LIST_PATIENCE: Nanos = 500 * MILLI;

/// The one nar's number.
const NAR: u32 = 0;

/// Octets of a piece's message besides the piece.
const PIECE_HEAD_BYTES: u64 = 50;

/// What one asker was told.
#[derive(Debug)]
struct Asking {
    /// Its first wishes, until it can be told the list.
    waiting: Option<Vec<(u32, u32)>>,
    /// Until when it waits for the list.
    patience: Nanos,
    told: PieceSet,
    opened: bool,
}

/// The holder's side of all its conversations.
#[derive(Debug)]
pub struct Serving {
    uploads: Uploads,
    askers: BTreeMap<SessionId, Asking>,
    telling: bool,
    wake: Option<Nanos>,
    /// What it serves, once that is known.
    version: Option<Version>,
}

impl Serving {
    fn new(config: UploadConfig) -> Self {
        Self {
            uploads: Uploads::new(config, Time::default()),
            askers: BTreeMap::new(),
            telling: false,
            wake: None,
            version: None,
        }
    }
}

impl Default for Serving {
    fn default() -> Self {
        Self::new(UploadConfig::default())
    }
}

impl Host {
    /// The version of the nar that it shows to others, if it can show one yet.
    pub(super) fn shown(&self) -> Option<Version> {
        match (self.nature, self.role) {
            (Nature::Lying(version), _) => Some(version),
            (_, Role::Seed) => Some(Version::True),
            _ => self.serving.version,
        }
    }

    /// What it holds of what it shows: a liar has it all, since it makes it up.
    fn shows_held(&self, layout: PieceLayout) -> PieceSet {
        match self.nature {
            Nature::Lying(_) | Nature::Empty => PieceSet::all(layout.piece_count()),
            _ => self.held.clone(),
        }
    }
}

impl World {
    pub(super) fn hear_request(&mut self, id: SessionId, request: Request) {
        let (asker, holder) = (self.session(id).asker, self.session(id).holder);
        if !self.reaches(asker, holder) || self.host(holder).frozen {
            return self.parked.push(Happening::Asked(id, request));
        }
        if self.host(holder).gone {
            if !matches!(request, Request::Close) {
                let wait = self.travel(holder, asker);
                self.agenda.after(wait, Happening::Broken(id));
            }
            return;
        }
        let now = time(self.now());
        let serving = &mut self.host_mut(holder).serving;
        let key = AskerId(id.0.into());
        let opened = serving.askers.get(&id).is_some_and(|asking| asking.opened);
        match request {
            Request::Open { first, count } => return self.open_asker(id, first, count),
            Request::Want { first, count } if opened => {
                serving.uploads.handle_want(key, NAR, first, count, now);
            }
            Request::Want { first, count } => self.want_early(holder, id, first, count),
            Request::Cancel { first, count } => {
                serving.uploads.handle_cancel(key, NAR, first, count);
                let unwanted = |parcel: &Parcel| {
                    matches!(parcel, Parcel::Reply(s, Reply::Piece { index, .. })
                    if *s == id && (first..first + count).contains(index))
                };
                self.leave_out(id, unwanted);
            }
            Request::Close => return self.forget_asker(id),
        }
        self.upload(holder);
    }

    /// Wishes that come before the list could be shown count once it is.
    fn want_early(&mut self, holder: HostId, id: SessionId, first: u32, count: u32) {
        if let Some(asking) = self.host_mut(holder).serving.askers.get_mut(&id)
            && let Some(waiting) = &mut asking.waiting
        {
            waiting.push((first, count));
        }
    }

    fn open_asker(&mut self, id: SessionId, first: u32, count: u32) {
        let holder = self.session(id).holder;
        let nature = self.host(holder).nature;
        if matches!(nature, Nature::Busy | Nature::NotHeld) {
            let busy = nature == Nature::Busy;
            return self.say(id, Reply::Refused { busy });
        }
        let now = self.now();
        let count_all = self.content.layout().piece_count();
        let asking = Asking {
            waiting: Some(vec![(first, count)]),
            patience: now + LIST_PATIENCE,
            told: PieceSet::none(count_all),
            opened: false,
        };
        self.host_mut(holder).serving.askers.insert(id, asking);
        self.show_list(id);
        if self.host(holder).shown().is_none() {
            // Looked at again when there is a list, and when patience ends.
            self.agenda.after(LIST_PATIENCE, Happening::TellsHave(holder));
        }
    }

    /// Shows an asker the list, if there is one to be shown.
    fn show_list(&mut self, id: SessionId) {
        let layout = self.content.layout();
        let holder = self.session(id).holder;
        let now = self.now();
        let host = self.host_mut(holder);
        let (shown, held) = (host.shown(), host.shows_held(layout));
        let Some(asking) = host.serving.askers.get_mut(&id) else { return };
        let Some(version) = shown else {
            if asking.patience <= now {
                host.serving.askers.remove(&id);
                self.say(id, Reply::Refused { busy: true });
            }
            return;
        };
        let Some(wishes) = asking.waiting.take() else { return };
        asking.opened = true;
        asking.told = held.clone();
        let broken = host.nature == Nature::BadList;
        host.serving.uploads.handle_nar(NAR, layout, time(now));
        let asker = AskerId(id.0.into());
        for (first, count) in wishes.into_iter().filter(|(_, count)| *count > 0) {
            host.serving.uploads.handle_want(asker, NAR, first, count, time(now));
        }
        self.say(id, Reply::Opened { version, broken, held });
        self.upload(holder);
    }

    /// Gives what may be given now, and sees when more may.
    pub(super) fn upload(&mut self, holder: HostId) {
        let now = self.now();
        if self.host(holder).gone || self.host(holder).frozen {
            return;
        }
        while let Some(give) = self.host_mut(holder).serving.uploads.poll_give(time(now)) {
            self.give(holder, give);
        }
        while let Some((asker, _)) = self.host_mut(holder).serving.uploads.poll_waiting(time(now)) {
            self.say(SessionId(asker.0 as u32), Reply::Have(vec![]));
        }
        let serving = &mut self.host_mut(holder).serving;
        if let Some(at) = serving.uploads.poll_timeout().map(nanos)
            && serving.wake.is_none_or(|wake| wake <= now || at < wake)
        {
            // A holder that wants to be woken at once has been polled just now.
            let at = at.max(now + MILLI);
            serving.wake = Some(at);
            self.agenda.at(at, Happening::Uploads(holder));
        }
    }

    fn give(&mut self, holder: HostId, give: Give) {
        let id = SessionId(give.asker.0 as u32);
        let now = self.now();
        let Some(piece) = self.piece_for(holder, give.index) else {
            self.host_mut(holder).serving.uploads.handle_given(give.asker, 0, time(now));
            return self.say(id, Reply::Missing(give.index));
        };
        let octets = self.content.layout().piece_len(give.index) as u64 + PIECE_HEAD_BYTES;
        let flow = self.session(id).flow;
        let reply = Reply::Piece { index: give.index, piece };
        self.network.send(flow, octets, Parcel::Reply(id, reply), false, now);
        if self.network.waiting(flow) == 1 {
            self.begin_piece(flow);
        }
    }

    /// What a host gives as this piece.
    fn piece_for(&mut self, holder: HostId, index: u32) -> Option<PieceHash> {
        if index >= self.content.layout().piece_count() {
            return None;
        }
        let host = &self.hosts[holder.0 as usize];
        let own = match host.role {
            Role::Seed => Some(self.content.piece(Version::True, index)),
            Role::Leech { .. } => host.pieces[index as usize],
        };
        match host.nature {
            Nature::Lying(version) => Some(self.content.piece(version, index)),
            Nature::Corrupting { percent } if self.luck.percent(percent.into()) => {
                own.map(|_| GARBAGE)
            }
            Nature::Empty => None,
            _ => own,
        }
    }

    /// A piece has left for its asker.
    pub(super) fn piece_has_left(&mut self, id: SessionId) {
        let holder = self.session(id).holder;
        let now = self.now();
        let octets = self.content.layout().piece_size();
        let uploads = &mut self.host_mut(holder).serving.uploads;
        uploads.handle_given(AskerId(id.0.into()), octets, time(now));
        self.upload(holder);
    }

    /// Takes out of the queue what an asker no longer wants.
    fn leave_out(&mut self, id: SessionId, unwanted: impl Fn(&Parcel) -> bool) {
        let (flow, holder) = (self.session(id).flow, self.session(id).holder);
        let now = time(self.now());
        for _ in self.network.take_back(flow, unwanted) {
            let uploads = &mut self.host_mut(holder).serving.uploads;
            uploads.handle_given(AskerId(id.0.into()), 0, now);
        }
    }

    /// An asker is gone, or has closed the conversation.
    pub(super) fn forget_asker(&mut self, id: SessionId) {
        let holder = self.session(id).holder;
        self.leave_out(id, |parcel| matches!(parcel, Parcel::Reply(s, _) if *s == id));
        let serving = &mut self.host_mut(holder).serving;
        serving.uploads.handle_gone(AskerId(id.0.into()));
        serving.askers.remove(&id);
        self.upload(holder);
    }

    /// Says something small: behind the piece that is leaving, if one is.
    fn say(&mut self, id: SessionId, reply: Reply) {
        let (flow, holder) = (self.session(id).flow, self.session(id).holder);
        let now = self.now();
        let small = !matches!(reply, Reply::Opened { .. });
        if self.network.waiting(flow) == 0 && small {
            let asker = self.session(id).asker;
            if self.reaches(holder, asker) {
                return self.tell(id, reply);
            }
        }
        let octets = reply.overhead_bytes(self.content.layout().piece_count());
        self.network.send(flow, octets, Parcel::Reply(id, reply), true, now);
    }

    /// A leecher has got a piece, or chosen a list: those who ask it are to hear of it.
    pub(super) fn has_more(&mut self, holder: HostId) {
        let serving = &mut self.host_mut(holder).serving;
        if !serving.telling && !serving.askers.is_empty() {
            serving.telling = true;
            self.agenda.after(HAVE_EVERY, Happening::TellsHave(holder));
        }
    }

    pub(super) fn tell_have(&mut self, holder: HostId) {
        self.host_mut(holder).serving.telling = false;
        if self.host(holder).gone || self.host(holder).frozen {
            return;
        }
        let askers: Vec<SessionId> = self.host(holder).serving.askers.keys().copied().collect();
        for id in askers {
            let host = &mut self.hosts[holder.0 as usize];
            let Some(asking) = host.serving.askers.get_mut(&id) else { continue };
            if asking.waiting.is_some() {
                self.show_list(id);
                continue;
            }
            let ranges = host.held.ranges_beyond(&asking.told);
            if !ranges.is_empty() && host.nature.is_honest() {
                asking.told = host.held.clone();
                self.say(id, Reply::Have(ranges));
            }
        }
    }

    /// Which list a leecher goes by from now on; another one than before ends its conversations,
    /// since what it gave belongs to the old one.
    pub(super) fn serve_version(&mut self, holder: HostId, version: Option<Version>) {
        let before = self.host(holder).serving.version;
        if before == version {
            return;
        }
        self.host_mut(holder).serving.version = version;
        if before.is_some() {
            self.close_askers(holder);
        }
        self.has_more(holder);
    }

    /// Ends all conversations in which a host is asked.
    fn close_askers(&mut self, holder: HostId) {
        let askers: Vec<SessionId> = self.host(holder).serving.askers.keys().copied().collect();
        for id in askers {
            self.forget_asker(id);
            self.say(id, Reply::Refused { busy: true });
        }
    }
}
