//! What there is to hold: items by popularity, with sizes, and who holds them.

use super::table::NodeId;
use crate::random::Chance;
use narswarm_protocol::announce::ItemKey;

/// An item's number; the most popular is 0.
pub type ItemId = u32;

/// Separates the items' keys from every other use of BLAKE3.
const DOMAIN: &str = "narswarm-sim 2026-11 key of an item";

/// Sizes of nars: most are small, few are large.
const SIZES: (u64, u64) = (20 << 10, 200 << 20);

/// See the module.
#[derive(Debug)]
pub struct Catalogue {
    keys: Vec<ItemKey>,
    sizes: Vec<u64>,
    /// Sums of popularity up to each item.
    sums: Vec<u64>,
    /// Who holds each, there or away.
    holders: Vec<Vec<NodeId>>,
}

impl Catalogue {
    /// So many items, the popularity of each falling with its rank to the power of `tenths` tenths:
    /// 8 or 10.
    #[must_use]
    pub fn new(count: u32, tenths: u32, chance: &mut Chance) -> Self {
        let key = |item: u32| {
            let hash = blake3::derive_key(DOMAIN, &item.to_le_bytes());
            ItemKey::from_provider_key(&hash)
        };
        let mut sum = 0;
        let sums = (1..=u64::from(count)).map(|rank| {
            sum += weight(rank, tenths);
            sum
        });
        Self {
            sums: sums.collect(),
            keys: (0..count).map(key).collect(),
            sizes: (0..count).map(|_| chance.logarithmic(SIZES.0, SIZES.1)).collect(),
            holders: vec![Vec::new(); count as usize],
        }
    }

    /// How many items there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.keys.len() as u32
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// An item, drawn by popularity.
    pub fn draw(&self, chance: &mut Chance) -> ItemId {
        let most = self.sums.last().copied().unwrap_or(1);
        let at = chance.between(1, most);
        self.sums.partition_point(|&sum| sum < at) as ItemId
    }

    /// Its key.
    #[must_use]
    pub fn key(&self, item: ItemId) -> ItemKey {
        self.keys[item as usize]
    }

    /// Its size in octets.
    #[must_use]
    pub fn size(&self, item: ItemId) -> u64 {
        self.sizes[item as usize]
    }

    /// Whether a node holds an item.
    #[must_use]
    pub fn holds(&self, node: NodeId, item: ItemId) -> bool {
        self.holders[item as usize].contains(&node)
    }

    /// A node holds an item from now on; says whether that is new.
    pub fn hold(&mut self, node: NodeId, item: ItemId) -> bool {
        let holders = &mut self.holders[item as usize];
        let new = !holders.contains(&node);
        if new {
            holders.push(node);
        }
        new
    }

    /// Who holds an item, there or away.
    #[must_use]
    pub fn holders(&self, item: ItemId) -> &[NodeId] {
        &self.holders[item as usize]
    }
}

/// Popularity in whole numbers, which are the same on every machine.
fn weight(rank: u64, tenths: u32) -> u64 {
    const ONE: u64 = 1 << 40;
    if tenths >= 10 {
        return ONE / rank;
    }
    // rank^0.8 in 256ths: the fifth root of rank^4 · 2^40.
    let power = u128::from(rank).pow(4) << 40;
    let (mut low, mut high) = (1, 1_u64 << 24);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if u128::from(middle).pow(5) <= power {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    (ONE << 8) / low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn popularity_falls_as_it_should() {
        assert_eq!(weight(10, 10) * 10, weight(1, 10) / 10 * 10);
        let ratio = weight(1, 8) as f64 / weight(1000, 8) as f64;
        assert!((ratio - 251.2).abs() < 2.0, "{ratio}");
        let mut chance = Chance::new(1, "catalogue");
        let catalogue = Catalogue::new(1000, 10, &mut chance);
        let first = (0..10_000).filter(|_| catalogue.draw(&mut chance) == 0).count();
        // One in the 7.49 that the harmonic series of 1,000 has.
        assert!((1200..1480).contains(&first), "{first}");
    }

    #[test]
    fn holders_are_remembered_once() {
        let mut catalogue = Catalogue::new(3, 8, &mut Chance::new(1, "catalogue"));
        assert!(catalogue.hold(7, 1) && !catalogue.hold(7, 1));
        assert!(catalogue.holds(7, 1) && !catalogue.holds(7, 2));
        assert_eq!(catalogue.holders(1), [7]);
    }
}
