//! The substitute server: streams the nar from its head, compressed, so that nothing can be
//! skipped, to whoever asks.

use super::{Happening, Parcel, World};
use crate::agenda::{MILLI, Nanos, SECOND};
use crate::network::{FlowId, HostId};
use crate::plan::UpstreamPlan;
use narswarm_protocol::hash::PieceHash;
use std::collections::BTreeMap;

/// Silence of upstream after which the node gives its stream up.
const STALL_TIMEOUT: Nanos = 12 * SECOND;

/// Parcels that wait in a stream: one leaves, one is behind it.
const PARCELS_AHEAD: usize = 2;

/// The server and its streams.
#[derive(Debug)]
pub struct Upstream {
    plan: UpstreamPlan,
    dead: bool,
    stalled: bool,
    next_stream: u32,
    streams: BTreeMap<u32, Stream>,
}

#[derive(Debug)]
struct Stream {
    host: HostId,
    flow: FlowId,
    from: u32,
    /// The next piece to be queued.
    next: u32,
    last_octet: Nanos,
}

impl Upstream {
    /// A server that is well.
    #[must_use]
    pub fn new(plan: UpstreamPlan) -> Self {
        Self { plan, dead: false, stalled: false, next_stream: 0, streams: BTreeMap::new() }
    }
}

impl World {
    fn server(&self) -> HostId {
        HostId(self.hosts.len() as u32)
    }

    pub(super) fn start_stream(&mut self, host: HostId, from: u32) {
        let (now, server) = (self.now(), self.server());
        let Some(upstream) = &mut self.upstream else { return };
        let stream = upstream.next_stream;
        upstream.next_stream += 1;
        let think = upstream.plan.think;
        let flow = self.network.flow(server, host);
        let entry = Stream { host, flow, from, next: 0, last_octet: now };
        upstream.streams.insert(stream, entry);
        let seen = self.network.departed(flow, now);
        if let Some(fetching) = self.fetching_mut(host) {
            fetching.stream = Some(stream);
            fetching.stream_seen = seen;
        }
        self.ledger.upstream_starts(host);
        let wait = self.travel(host, server) + think;
        self.agenda.after(wait, Happening::UpstreamBegins { host, stream });
    }

    pub(super) fn begin_stream(&mut self, host: HostId, stream: u32) {
        let server = self.server();
        if !self.reaches(server, host) {
            return;
        }
        let Some(upstream) = &self.upstream else { return };
        let Some(flow) = upstream.streams.get(&stream).map(|stream| stream.flow) else { return };
        if upstream.dead {
            let wait = self.travel(server, host);
            return self.agenda.after(wait, Happening::UpstreamEnds { host, stream });
        }
        let stalled = upstream.stalled;
        self.network.block(flow, stalled, self.now());
        self.fill_stream(stream);
        if !stalled {
            let wait = self.one_way(server, host);
            self.agenda.after(wait, Happening::UpstreamFirst { host, stream });
        }
    }

    /// A reader at the head sees upstream's octets before a piece is whole.
    pub(super) fn hear_first_octet(&mut self, host: HostId, stream: u32) {
        let now = self.now();
        let reads = self.host(host).fetching.as_ref().is_some_and(|f| f.reads_from_the_head(now));
        if reads && self.is_heard(host, stream) {
            self.ledger.first_octet(host, now);
        }
    }

    /// Keeps the stream's flow supplied.
    fn fill_stream(&mut self, id: u32) {
        let now = self.now();
        let layout = self.content.layout();
        let Some(stream) = self.upstream.as_mut().and_then(|up| up.streams.get_mut(&id)) else {
            return;
        };
        while stream.next < layout.piece_count()
            && self.network.waiting(stream.flow) < PARCELS_AHEAD
        {
            let index = stream.next;
            stream.next += 1;
            let parcel = Parcel::Upstream { host: stream.host, stream: id, index };
            let octets = layout.piece_len(index) as u64;
            self.network.send(stream.flow, octets, parcel, false, now);
        }
    }

    /// A piece of the stream has left.
    pub(super) fn stream_on(&mut self, host: HostId, stream: u32, index: u32) {
        let server = self.server();
        let Some(upstream) = &self.upstream else { return };
        if !upstream.streams.contains_key(&stream) {
            return;
        }
        let piece = self.content.piece(upstream.plan.version, index);
        let wait = self.one_way(server, host);
        self.agenda.after(wait, Happening::UpstreamPiece { host, stream, index, piece });
        if index + 1 == self.content.layout().piece_count() {
            self.agenda.after(wait, Happening::UpstreamEnds { host, stream });
        }
        self.fill_stream(stream);
    }

    /// The stream that a fetch listens to, if this is it.
    fn is_heard(&self, host: HostId, stream: u32) -> bool {
        self.host(host).fetching.as_ref().is_some_and(|f| !f.is_over() && f.stream == Some(stream))
            && !self.host(host).gone
    }

    pub(super) fn hear_upstream_piece(
        &mut self,
        host: HostId,
        stream: u32,
        index: u32,
        piece: PieceHash,
    ) {
        if !self.is_heard(host, stream) {
            return;
        }
        let now = self.now();
        let bytes = self.content.layout().piece_len(index) as u64;
        self.checker.handle_octets(host, now);
        self.hear_stream_octets(host, stream);
        let from = self.upstream.as_mut().and_then(|up| up.streams.get_mut(&stream)).map(|entry| {
            entry.last_octet = now;
            entry.from
        });
        if from.is_none_or(|from| index < from) {
            return self.ledger.upstream_skips(host, bytes);
        }
        if !self.is_heard(host, stream) {
            return;
        }
        let Some(fetching) = self.fetching_mut(host) else { return };
        let new = fetching.machine.handle_upstream_piece(index, piece, now);
        self.trace.add(now, format_args!("{host} upstream piece {index} new={new}"));
        if new {
            self.ledger.from_upstream(host, bytes);
            self.hold(host, index, piece);
        } else {
            self.ledger.upstream_twice(host, bytes);
        }
        self.pump(host);
    }

    fn hear_stream_octets(&mut self, host: HostId, stream: u32) {
        let now = self.now();
        let Some(entry) = self.upstream.as_ref().and_then(|up| up.streams.get(&stream)) else {
            return;
        };
        let departed = self.network.departed(entry.flow, now);
        let Some(fetching) = self.fetching_mut(host) else { return };
        let bytes = departed.saturating_sub(fetching.stream_seen);
        fetching.stream_seen = fetching.stream_seen.max(departed);
        self.hear_upstream_progress(host, stream, bytes);
    }

    pub(super) fn hear_upstream_progress(&mut self, host: HostId, stream: u32, bytes: u64) {
        if bytes == 0 || !self.is_heard(host, stream) {
            return;
        }
        let now = self.now();
        if let Some(entry) = self.upstream.as_mut().and_then(|up| up.streams.get_mut(&stream)) {
            entry.last_octet = now;
        }
        self.checker.handle_octets(host, now);
        self.trace.add(now, format_args!("{host} upstream {bytes} octets"));
        self.with_machine(host, |machine| machine.handle_upstream_progress(bytes, now));
    }

    /// Looks at a fetch's stream, and gives it up when it has been silent for too long.
    pub(super) fn look_at_upstream(&mut self, host: HostId) {
        let now = self.now();
        let Some(stream) = self.host(host).fetching.as_ref().and_then(|f| f.stream) else { return };
        let server = self.server();
        let Some(entry) = self.upstream.as_ref().and_then(|up| up.streams.get(&stream)) else {
            return;
        };
        if now.saturating_sub(entry.last_octet) > STALL_TIMEOUT {
            return self.hear_upstream_end(host, stream);
        }
        let departed = self.network.departed(entry.flow, now);
        let Some(fetching) = self.fetching_mut(host) else { return };
        let bytes = departed.saturating_sub(fetching.stream_seen);
        fetching.stream_seen = fetching.stream_seen.max(departed);
        if bytes > 0 {
            let wait = self.distance(server, host);
            self.agenda.after(wait, Happening::CameFromUpstream { host, stream, bytes });
        }
    }

    pub(super) fn hear_upstream_end(&mut self, host: HostId, stream: u32) {
        if !self.is_heard(host, stream) {
            return;
        }
        let now = self.now();
        self.stop_stream(host);
        self.checker.handle_upstream_ended(host);
        self.trace.add(now, format_args!("{host} upstream ended"));
        self.with_machine(host, |machine| machine.handle_upstream_ended(now));
    }

    /// Closes the connection of a fetch with upstream.
    pub(super) fn stop_stream(&mut self, host: HostId) {
        let now = self.now();
        let Some(stream) = self.fetching_mut(host).and_then(|f| f.stream.take()) else { return };
        self.checker.handle_upstream_ended(host);
        let Some(entry) = self.upstream.as_mut().and_then(|up| up.streams.remove(&stream)) else {
            return;
        };
        self.network.reset(entry.flow, now);
    }

    /// Upstream breaks off all streams and refuses new ones.
    pub(super) fn kill_upstream(&mut self) {
        let (now, server) = (self.now(), self.server());
        let Some(upstream) = &mut self.upstream else { return };
        upstream.dead = true;
        let streams: Vec<_> =
            upstream.streams.iter().map(|(&id, s)| (id, s.host, s.flow)).collect();
        for (stream, host, flow) in streams {
            self.network.reset(flow, now);
            let wait = self.travel(server, host) + MILLI;
            self.agenda.after(wait, Happening::UpstreamEnds { host, stream });
        }
    }

    /// Upstream sends nothing more, or goes on.
    pub(super) fn stall_upstream(&mut self, stalled: bool) {
        let now = self.now();
        let Some(upstream) = &mut self.upstream else { return };
        (upstream.stalled, upstream.dead) = (stalled, false);
        for stream in upstream.streams.values() {
            self.network.block(stream.flow, stalled, now);
        }
    }

    /// Halts the streams of hosts that upstream doesn't reach.
    pub(super) fn block_streams(&mut self) {
        let now = self.now();
        let server = self.server();
        let Some(upstream) = &self.upstream else { return };
        let streams: Vec<_> = upstream.streams.values().map(|s| (s.host, s.flow)).collect();
        let stalled = upstream.stalled;
        for (host, flow) in streams {
            let blocked = stalled || !self.reaches(server, host);
            self.network.block(flow, blocked, now);
        }
    }
}
