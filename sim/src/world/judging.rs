//! What only who sees the whole world can tell: whether a fetch stands still though somebody could
//! give it something, and whether everything has ended as it should.

use super::{Ended, World};
use crate::agenda::{MILLI, Nanos, SECOND, seconds};
use crate::check::{Rule, Violation};
use crate::network::HostId;
use crate::plan::Role;
use crate::report::Report;

/// How long a fetch must have known a peer for its silence to count: opening takes a moment.
const KNOWN_FOR: Nanos = SECOND;

impl World {
    /// Whether `holder` could give `host` a piece that it lacks.
    fn could_give(&self, holder: HostId, host: HostId) -> bool {
        let (giver, taker) = (self.host(holder), self.host(host));
        let able = giver.nature.is_honest() && !giver.gone && !giver.frozen;
        let has = match giver.role {
            Role::Seed => !taker.held.is_all(),
            Role::Leech { .. } => false,
        };
        able && has && self.reaches(holder, host)
    }

    /// Whether a fetch has stood still for longer than it may.
    pub(super) fn judge_gap(&mut self, host: HostId) {
        let now = self.now();
        let Some(longest) = self.checker.demands().longest_gap else { return };
        let Some(still) = self.checker.standstill(host, now).filter(|still| *still > longest)
        else {
            return;
        };
        let entry = self.host(host);
        let Some(fetching) = &entry.fetching else { return };
        let ahead = match entry.role {
            Role::Leech { reader, .. } => reader.ahead.is_some() || reader.rate.is_some(),
            Role::Seed => false,
        };
        // Who waits for its reader, or for the verdict, doesn't stand still.
        if ahead || entry.held.is_all() {
            return;
        }
        let since = now.saturating_sub(longest.max(KNOWN_FOR));
        let known: Vec<HostId> = fetching.known_since(since).collect();
        let giver = known.into_iter().find(|&peer| self.could_give(peer, host));
        if let Some(peer) = giver.filter(|_| self.last_change + longest < now) {
            let reason =
                format!("{host} has stood still for {:.1} s, while {peer} gives", seconds(still));
            self.checker.broken(Rule::Gap, reason);
        }
    }

    /// Whether everything has ended as it should.
    pub(super) fn judge_end(&mut self) -> Result<(), Violation> {
        self.checker.at(self.now());
        let demands = self.plan.demands.clone();
        for index in 0..self.hosts.len() {
            let host = HostId(index as u32);
            let account = &self.ledger.accounts()[index];
            if account.started.is_none() || account.gone {
                continue;
            }
            let (ended, retries) = (account.ended.clone(), account.retries);
            let stays = !self.host(host).cut;
            match ended {
                None => {
                    let held = self.host(host).held.len();
                    let reason = format!(
                        "{host} has not ended, holding {held} of {} pieces, after {retries} \
                         further attempts",
                        self.content.layout().piece_count()
                    );
                    self.checker.broken(Rule::Ends, reason);
                }
                Some((at, Ended::Failed(failure))) if demands.all_done && stays => {
                    let reason = format!("{host} failed after {:.3} s: {failure}", seconds(at));
                    self.checker.broken(Rule::EndsWell, reason);
                }
                Some(_) => {}
            }
        }
        let report = Report::of(self);
        for (rule, found, most) in [
            (Rule::Ratio, report.ratio * 100.0, demands.ratio_percent),
            (Rule::Late, report.last_s * 1000.0, demands.last_within.map(|at| at / MILLI)),
            (
                Rule::FirstOctet,
                report.first_octet_s * 1000.0,
                demands.first_octet_within.map(|at| at / MILLI),
            ),
            (
                Rule::HalfRead,
                report.half_read_s * 1000.0,
                demands.half_read_within.map(|at| at / MILLI),
            ),
            (Rule::Egress, report.seed_egress * 100.0, demands.egress_percent),
            (Rule::Duplicates, report.duplicates * 1000.0, demands.duplicates_per_mille),
            (Rule::Waste, report.waste * 1000.0, demands.waste_per_mille),
        ] {
            if let Some(most) = most.filter(|most| found > *most as f64) {
                let reason = format!("{found:.1}, where {most} at most is demanded");
                self.checker.broken(rule, reason);
            }
        }
        self.checker.violation().map_or(Ok(()), Err)
    }
}
