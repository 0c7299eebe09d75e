//! Max-min fair rates: nobody can have more without taking from somebody who has less.
//!
//! The link that leaves the least to each of its flows decides their rate; what they leave on
//! their other ends is shared among the rest, and so on.

use super::{HostId, Link};

/// Working memory, kept between computations.
#[derive(Debug, Default)]
pub struct Shares {
    rates: Vec<u64>,
    ends: Vec<(usize, usize)>,
    open: Vec<usize>,
    /// Capacity not given away, and flows without a rate, of each host's uplink and downlink:
    /// host `n` has the entries `2n` and `2n + 1`.
    left: Vec<u64>,
    flows: Vec<u64>,
}

impl Shares {
    /// Computes the rates of flows between these hosts.
    pub fn compute(&mut self, links: &[Link], ends: impl Iterator<Item = (HostId, HostId)>) {
        self.ends.clear();
        self.ends.extend(ends.map(|(from, to)| (2 * from.0 as usize, 2 * to.0 as usize + 1)));
        self.left.clear();
        self.left.extend(links.iter().flat_map(|link| [link.up, link.down]));
        self.flows.clear();
        self.flows.resize(self.left.len(), 0);
        for &(up, down) in &self.ends {
            self.flows[up] += 1;
            self.flows[down] += 1;
        }
        self.rates.clear();
        self.rates.resize(self.ends.len(), 0);
        self.open.clear();
        self.open.extend(0..self.ends.len());
        while !self.open.is_empty() {
            self.fill();
        }
    }

    /// The rates in the order of the flows, octets a second.
    #[must_use]
    pub fn rates(&self) -> &[u64] {
        &self.rates
    }

    fn share(&self, link: usize) -> u64 {
        self.left[link] / self.flows[link].max(1)
    }

    /// Gives their rate to all flows of the links that leave the least to each.
    fn fill(&mut self) {
        let used = (0..self.left.len()).filter(|&link| self.flows[link] > 0);
        let Some(least) = used.map(|link| self.share(link)).min() else {
            self.open.clear();
            return;
        };
        let decided: Vec<bool> = (0..self.left.len())
            .map(|link| self.flows[link] > 0 && self.share(link) == least)
            .collect();
        let open = std::mem::take(&mut self.open);
        self.open = open
            .into_iter()
            .filter(|&flow| {
                let (up, down) = self.ends[flow];
                if !decided[up] && !decided[down] {
                    return true;
                }
                self.rates[flow] = least;
                for link in [up, down] {
                    self.left[link] -= least;
                    self.flows[link] -= 1;
                }
                false
            })
            .collect();
    }
}
