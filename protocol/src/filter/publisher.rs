//! A seed's filters, one after another, and what has changed from each to the next.
//!
//! New items come one by one and are gathered; what has gone is seen when everything is looked
//! through, once a day: a filter that says yes to it for a while costs others little. What has changed
//! is remembered for as long as it is shorter than the whole.

use super::{Delta, Filter, FilterError, FilterHead, Shape, SignedHead, leading};
use crate::announce::ItemKey;
use crate::limits::{MAX_DELTA_HISTORY, MAX_DELTA_ITEMS};
use crate::octets::{Reader, SnapshotError, seal, unseal};
use crate::voucher::VoucherSigner;
use std::collections::{BTreeSet, VecDeque};

const MAGIC: &[u8] = b"narswarm filters 1\n";

/// What is answered to whoever asks for the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing has changed since.
    Same,
    /// What has changed, see [`Delta::to_octets`].
    Changes(Vec<u8>),
    /// All of it.
    Whole,
}

/// See the module.
#[derive(Debug)]
pub struct Publisher {
    series: u64,
    generation: u32,
    filter: Filter,
    head: FilterHead,
    /// What makes the filter out of earlier ones, the last one last.
    changes: VecDeque<Delta>,
    /// Fingerprints that have come since.
    pending: BTreeSet<u32>,
}

impl Publisher {
    /// The first filter of a series, of items with these leading bits. `series` is to be another
    /// number than those before.
    #[must_use]
    pub fn new(series: u64, leading: &mut Vec<u32>) -> Self {
        let filter = Filter::build(Shape::for_items(leading.len() as u64), leading);
        Self::of(series, 1, filter, VecDeque::new())
    }

    fn of(series: u64, generation: u32, filter: Filter, changes: VecDeque<Delta>) -> Self {
        let head = FilterHead::of(&filter, series, generation);
        Self { series, generation, filter, head, changes, pending: BTreeSet::new() }
    }

    /// The filter of now.
    #[must_use]
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Its head, signed.
    #[must_use]
    pub fn head(&self, signer: &VoucherSigner) -> SignedHead {
        self.head.sign(signer)
    }

    /// An item is held now.
    pub fn handle_held(&mut self, key: &ItemKey) {
        if self.pending.len() < MAX_DELTA_ITEMS && !self.filter.says_yes(key) {
            self.pending.insert(self.filter.shape().fingerprint(leading(key)));
        }
    }

    /// Makes the next filter, if there is something new; says whether it has.
    pub fn publish(&mut self) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        let came = std::mem::take(&mut self.pending).into_iter().collect();
        self.go_on(Delta { came, gone: Vec::new() })
    }

    /// Everything that is held has been looked through: makes the next filter of it, if it is another
    /// one. A series that has become too narrow ends, and `series` begins.
    pub fn rebuild(&mut self, series: u64, leading: &mut Vec<u32>) -> bool {
        let (shape, items) = (self.filter.shape(), leading.len() as u64);
        self.pending.clear();
        // One that has shrunk to a quarter is wider than it need be.
        if !shape.suffices(items) || Shape::for_items(items * 4).bits() < shape.bits() {
            *self = Self::new(series, leading);
            return true;
        }
        let delta = Filter::build(shape, leading).since(&self.filter);
        if delta.is_empty() {
            return false;
        }
        if delta.came.len().max(delta.gone.len()) > MAX_DELTA_ITEMS {
            *self = Self::new(series, leading);
            return true;
        }
        self.go_on(delta)
    }

    fn go_on(&mut self, delta: Delta) -> bool {
        let Ok(filter) = self.filter.apply(&delta) else { return false };
        let mut changes = std::mem::take(&mut self.changes);
        changes.push_back(delta);
        let len = |delta: &Delta| delta.came.len() + delta.gone.len();
        let mut total: usize = changes.iter().map(len).sum();
        while total > MAX_DELTA_ITEMS || changes.len() > MAX_DELTA_HISTORY {
            total -= changes.pop_front().as_ref().map_or(0, len);
        }
        *self = Self::of(self.series, self.generation + 1, filter, changes);
        true
    }

    /// What makes the filter of now out of what somebody has, who names its series and generation.
    #[must_use]
    pub fn content(&self, have: Option<(u64, u32)>) -> Content {
        let since = have.filter(|(series, _)| *series == self.series);
        let since = since.and_then(|(_, generation)| self.generation.checked_sub(generation));
        let Some(since) = since.map(|since| since as usize) else { return Content::Whole };
        if since == 0 {
            return Content::Same;
        }
        let Some(first) = self.changes.len().checked_sub(since) else { return Content::Whole };
        let merged = self.changes.range(first..).fold(Delta::default(), |all, d| all.then(d));
        let octets = merged.to_octets(self.filter.shape());
        let is_shorter = octets.len() < self.filter.octets().len();
        if is_shorter { Content::Changes(octets) } else { Content::Whole }
    }

    /// Everything, as octets for [`Publisher::from_snapshot`]: after a restart others needn't fetch
    /// the whole again.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let shape = self.filter.shape();
        let mut out = MAGIC.to_vec();
        out.extend(self.series.to_le_bytes());
        out.extend(self.generation.to_le_bytes());
        out.extend([shape.bits(), shape.part_bits()]);
        let mut long = |octets: &[u8]| {
            out.extend((octets.len() as u32).to_le_bytes());
            out.extend(octets);
        };
        long(self.filter.octets());
        self.changes.iter().for_each(|delta| long(&delta.to_octets(shape)));
        seal(out)
    }

    /// Reads what [`Publisher::snapshot`] has written.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn from_snapshot(octets: &[u8]) -> Result<Self, SnapshotError> {
        let mut reader = unseal(octets, MAGIC)?;
        let damaged = |_: FilterError| SnapshotError::Damaged;
        let mut head = || {
            let (series, generation) = (reader.u64()?, reader.u32()?);
            let (bits, part_bits) = (reader.u8()?, reader.u8()?);
            Some((series, generation, bits, part_bits, long(&mut reader)?))
        };
        let (series, generation, bits, part_bits, whole) = head().ok_or(SnapshotError::Damaged)?;
        let shape = Shape::new(bits, part_bits).map_err(damaged)?;
        let filter = Filter::from_octets(shape, whole.to_vec()).map_err(damaged)?;
        let mut changes = VecDeque::new();
        while !reader.is_empty() {
            let octets = long(&mut reader).ok_or(SnapshotError::Damaged)?;
            changes.push_back(Delta::from_octets(shape, octets).map_err(damaged)?);
        }
        Ok(Self::of(series, generation, filter, changes))
    }
}

fn long<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    let len = reader.u32()? as usize;
    reader.take(len)
}
