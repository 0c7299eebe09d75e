//! Who got how much from where, and when each was done: what reports are made of.

use crate::agenda::{Nanos, SECOND};
use crate::network::HostId;
use crate::world::Ended;

/// One host's part.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// When its first attempt began.
    pub started: Option<Nanos>,
    /// When and how its fetch ended.
    pub ended: Option<(Nanos, Ended)>,
    /// It has gone and not come back.
    pub gone: bool,
    /// Octets of pieces taken from peers.
    pub from_peers: u64,
    /// Octets of pieces taken from upstream.
    pub from_upstream: u64,
    /// Octets of pieces that came though they were held.
    pub duplicate: u64,
    /// Octets of pieces that came and were of no use: garbage, of other lists, after the end.
    pub useless: u64,
    /// Octets that upstream sent though they were held: it can only stream from the head.
    pub upstream_overlap: u64,
    /// When the reader first got something.
    pub first_octet: Option<Nanos>,
    /// When the reader had been given half of the pieces.
    pub half_read: Option<Nanos>,
    /// Pieces given to the reader, and how many of them were wrong.
    pub delivered: u64,
    /// See `delivered`.
    pub delivered_wrong: u64,
    /// Further attempts.
    pub retries: u32,
    /// Streams asked of upstream.
    pub upstream_starts: u32,
    /// How many pieces were held when: the curve that is drawn.
    pub curve: Vec<(Nanos, u32)>,
}

/// All accounts.
#[derive(Debug)]
pub struct Ledger {
    accounts: Vec<Account>,
    running: usize,
    /// Bans of hosts that deserved it, and of hosts that didn't.
    pub bans: u32,
    /// See `bans`.
    pub unjust_bans: u32,
}

impl Ledger {
    /// Empty accounts of so many hosts.
    #[must_use]
    pub fn new(hosts: usize) -> Self {
        let accounts = vec![Account::default(); hosts];
        Self { accounts, running: 0, bans: 0, unjust_bans: 0 }
    }

    /// The accounts, host by host.
    #[must_use]
    pub fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// The accounts of hosts that have fetched.
    pub fn fetches(&self) -> impl Iterator<Item = &Account> {
        self.accounts.iter().filter(|account| account.started.is_some())
    }

    /// Whether no fetch is under way.
    #[must_use]
    pub fn all_ended(&self) -> bool {
        self.running == 0
    }

    fn account(&mut self, host: HostId) -> &mut Account {
        &mut self.accounts[host.0 as usize]
    }

    fn recount(&mut self) {
        let runs = |a: &&Account| a.started.is_some() && a.ended.is_none() && !a.gone;
        self.running = self.accounts.iter().filter(runs).count();
    }

    /// A fetch begins, or begins anew.
    pub fn starts(&mut self, host: HostId, now: Nanos) {
        let account = self.account(host);
        account.started.get_or_insert(now);
        account.curve.push((now, 0));
        self.recount();
    }

    /// A fetch has ended.
    pub fn ends(&mut self, host: HostId, ended: &Ended, now: Nanos) {
        self.account(host).ended = Some((now, ended.clone()));
        self.recount();
    }

    /// A host is gone.
    pub fn gone(&mut self, host: HostId) {
        self.account(host).gone = true;
        self.recount();
    }

    /// A host is back.
    pub fn back(&mut self, host: HostId) {
        self.account(host).gone = false;
        self.recount();
    }

    /// A host holds so many pieces now.
    pub fn holds(&mut self, host: HostId, pieces: u32, now: Nanos) {
        self.account(host).curve.push((now, pieces));
    }

    /// Octets were taken from a peer.
    pub fn from_peer(&mut self, host: HostId, bytes: u64) {
        self.account(host).from_peers += bytes;
    }

    /// Octets were taken from upstream.
    pub fn from_upstream(&mut self, host: HostId, bytes: u64) {
        self.account(host).from_upstream += bytes;
    }

    /// Octets of a peer came twice.
    pub fn duplicate(&mut self, host: HostId, bytes: u64) {
        self.account(host).duplicate += bytes;
    }

    /// Octets came for nothing.
    pub fn useless(&mut self, host: HostId, bytes: u64) {
        self.account(host).useless += bytes;
    }

    /// Upstream had to send what was held already.
    pub fn upstream_skips(&mut self, host: HostId, bytes: u64) {
        self.account(host).upstream_overlap += bytes;
    }

    /// Upstream sent what had come from peers meanwhile.
    pub fn upstream_twice(&mut self, host: HostId, bytes: u64) {
        self.account(host).upstream_overlap += bytes;
    }

    /// Upstream was asked for a stream.
    pub fn upstream_starts(&mut self, host: HostId) {
        self.account(host).upstream_starts += 1;
    }

    /// The reader was given a piece, of so many.
    pub fn delivers(&mut self, host: HostId, right: bool, of: u32, now: Nanos) {
        self.first_octet(host, now);
        let account = self.account(host);
        account.delivered += 1;
        if account.delivered >= u64::from(of).div_ceil(2) {
            account.half_read.get_or_insert(now);
        }
        account.delivered_wrong += u64::from(!right);
    }

    /// The reader got something, if only a part of a piece.
    pub fn first_octet(&mut self, host: HostId, now: Nanos) {
        self.account(host).first_octet.get_or_insert(now);
    }

    /// A fetch will be tried again.
    pub fn retries(&mut self, host: HostId) {
        self.account(host).retries += 1;
    }

    /// A host was banned.
    pub fn bans(&mut self, honest: bool) {
        self.bans += 1;
        self.unjust_bans += u32::from(honest);
    }
}

/// How long each fetch that ended well took, rising.
#[must_use]
pub fn durations(ledger: &Ledger) -> Vec<Nanos> {
    let mut all: Vec<Nanos> = ledger
        .fetches()
        .filter_map(|account| match (&account.started, &account.ended) {
            (Some(started), Some((at, Ended::Done))) => Some(at - started),
            _ => None,
        })
        .collect();
    all.sort_unstable();
    all
}

/// Whole seconds that a run covers, for rates and bounds.
#[must_use]
pub fn whole_seconds(span: Nanos) -> u64 {
    span / SECOND + 1
}
