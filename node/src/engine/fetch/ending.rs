//! How a fetch ends: what is counted, kept, and remembered for the next attempt.

use super::Driver;
use crate::engine::progress::Cause;
use crate::metrics::{FetchLabels, FetchOutcome, VerificationKind};
use narswarm_protocol::fetch::Failure;
use tracing::{info, warn};

impl Driver {
    pub(super) async fn done(&mut self) {
        self.progress.set_verified();
        self.engine.distrusted.invalidate(&self.narinfo.nar_hash());
        if self.from_upstream
            && let Some(rate) = self.machine.upstream_rate()
        {
            *self.engine.upstream_rate.lock() = Some(rate);
        }
        let outcome = match (self.from_peers, self.from_upstream) {
            (true, true) => FetchOutcome::Mixed,
            (true, false) => FetchOutcome::FromPeers,
            _ => FetchOutcome::FromUpstream,
        };
        self.engine.metrics.fetches.get_or_create(&FetchLabels { outcome }).inc();
        let (Some(disk), Some(hashes)) = (self.disk.take(), self.hashed.take()) else {
            self.progress.set_unkept();
            return;
        };
        match self.engine.finish_partial(&self.narinfo, disk, hashes).await {
            Ok(kept) => self.progress.set_kept(kept),
            Err(error) => {
                warn!(item = %self.narinfo.item(), "the nar was served but not kept: {error}");
                self.progress.set_unkept();
            }
        }
    }

    pub(super) fn failed(&mut self, failure: Failure) {
        let nar_hash = self.narinfo.nar_hash();
        let (cause, outcome) = match &failure {
            Failure::NoSource => {
                // Upstream spoke against a root and then gave no nar to judge by: its word is not
                // worth doing without the swarm. guix gets this nar only when all of it is verified.
                self.engine.acquit(nar_hash);
                (Cause::NoSource, FetchOutcome::Failed)
            }
            Failure::Mismatch { root, upstream } => {
                if root.is_none() {
                    self.count(VerificationKind::Nar);
                }
                if *upstream && root.is_none() {
                    warn!(item = %self.narinfo.item(), "upstream's nar doesn't have the signed hash");
                    // A root that was set aside because upstream spoke against it was right.
                    if self.engine.acquit(nar_hash) {
                        self.engine.bad_upstream.insert(nar_hash, ());
                    }
                }
                (Cause::Mismatch, FetchOutcome::Mismatch)
            }
            // Who is right shows when the next attempt does without the swarm's root: if what
            // upstream gives doesn't hash right then, it is upstream that is left out.
            Failure::Contradiction { root } => {
                if let Some(root) = root {
                    self.engine.condemn(nar_hash, *root, false);
                }
                (Cause::Mismatch, FetchOutcome::Mismatch)
            }
        };
        if cause == Cause::Mismatch {
            // From now on guix gets this nar only when the whole of it has been verified.
            self.engine.distrusted.insert(nar_hash, ());
        }
        self.engine.metrics.fetches.get_or_create(&FetchLabels { outcome }).inc();
        let stalled = self.upstream_error.as_ref().map(ToString::to_string).unwrap_or_default();
        info!(item = %self.narinfo.item(), "fetch failed: {failure} {stalled}");
        // What was fetched under doubt is of no use; else the next attempt goes on from there.
        if let Some(disk) = self.disk.take().filter(|_| cause == Cause::Mismatch) {
            tokio::task::spawn_blocking(move || disk.abandon());
        }
        self.progress.fail(cause);
    }
}
