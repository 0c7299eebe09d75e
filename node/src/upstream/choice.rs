//! Which of a narinfo's URL/Compression/FileSize groups to download.
//!
//! A pure decision: no server is asked. The fewest octets on the wire win, except that zstd wins
//! when it is close, since it decodes five to ten times as fast as gzip and lzip do.

use narswarm_protocol::narinfo::{Compression, NarSource};

/// zstd may be larger by this ratio (13/10) and still be chosen. Measured on Guix's farms zstd
/// nars are a fifth larger than lzip ones; above a third the transfer outweighs the decoding on
/// the slow links that need substitutes from elsewhere most.
const ZSTD_ALLOWANCE: (u128, u128) = (13, 10);

/// The group to download: the smallest FileSize, or zstd where it is at most 1.3 times that; where
/// no size is told, by what usually compresses best for its cost. Groups of unknown size come after
/// those of known size. `None` when there is no group.
#[must_use]
pub fn best_source(sources: &[NarSource]) -> Option<&NarSource> {
    ranked_sources(sources).into_iter().next()
}

/// All groups, best first: the order in which to try them.
#[must_use]
pub fn ranked_sources(sources: &[NarSource]) -> Vec<&NarSource> {
    let mut ranked: Vec<&NarSource> = sources.iter().collect();
    // The sort is stable: equals stay in the order of the narinfo.
    ranked.sort_by_key(|source| match source.file_size {
        Some(size) => (0, weight(source.compression, size)),
        None => (1, u128::from(usual_rank(source.compression))),
    });
    ranked
}

/// As [`ranked_sources`], when only the octets of the nar from `from` on are wanted: those of an
/// uncompressed one can be asked for by themselves, a compressed one has to be decoded from its
/// head. So where the rest is the least to transfer, the uncompressed group comes first.
#[must_use]
pub fn ranked_sources_from(sources: &[NarSource], nar_size: u64, from: u64) -> Vec<&NarSource> {
    let mut ranked = ranked_sources(sources);
    let rest = nar_size.saturating_sub(from);
    let is_plain = |source: &&NarSource| source.compression == Compression::None;
    if from > 0
        && let Some(place) = ranked.iter().position(is_plain)
        // Where no size is told, half of the nar is usual.
        && ranked.iter().all(|s| is_plain(s) || rest <= s.file_size.unwrap_or(nar_size / 2))
    {
        ranked[..=place].rotate_right(1);
    }
    ranked
}

/// A size that compares as if zstd were smaller by its allowance.
fn weight(compression: Compression, file_size: u64) -> u128 {
    let (over, under) = ZSTD_ALLOWANCE;
    u128::from(file_size) * if compression == Compression::Zstd { under } else { over }
}

/// Where no size is told.
fn usual_rank(compression: Compression) -> u8 {
    match compression {
        Compression::Zstd => 0,
        Compression::Lzip => 1,
        Compression::Xz => 2,
        Compression::Gzip => 3,
        Compression::None => 4,
        Compression::Bzip2 => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Compression::{Bzip2, Gzip, Lzip, None as Plain, Zstd};

    fn best(groups: &[(Compression, Option<u64>)]) -> Option<Compression> {
        let sources: Vec<NarSource> = groups
            .iter()
            .map(|&(compression, file_size)| NarSource {
                url: format!("nar/{compression:?}"),
                compression,
                file_size,
            })
            .collect();
        best_source(&sources).map(|source| source.compression)
    }

    #[test]
    fn the_smallest_wins_unless_zstd_is_close() {
        assert_eq!(best(&[(Gzip, Some(140)), (Lzip, Some(100))]), Some(Lzip));
        assert_eq!(best(&[(Lzip, Some(100)), (Zstd, Some(129))]), Some(Zstd));
        assert_eq!(best(&[(Lzip, Some(100)), (Zstd, Some(131))]), Some(Lzip));
        assert_eq!(best(&[(Zstd, Some(u64::MAX)), (Plain, Some(u64::MAX))]), Some(Zstd));
    }

    #[test]
    fn unknown_sizes_come_last() {
        assert_eq!(best(&[(Zstd, None), (Gzip, Some(1 << 40))]), Some(Gzip));
        assert_eq!(best(&[(Plain, None), (Gzip, None), (Lzip, None)]), Some(Lzip));
    }

    #[test]
    fn the_rest_of_a_plain_nar_wins_when_it_is_less_than_all_of_a_compressed_one() {
        let source = |compression, file_size| NarSource {
            url: String::new(),
            compression,
            file_size: Some(file_size),
        };
        let sources = [source(Gzip, 50), source(Zstd, 40), source(Plain, 100)];
        let first = |from| ranked_sources_from(&sources, 100, from)[0].compression;
        assert_eq!((first(0), first(59), first(60), first(99)), (Zstd, Zstd, Plain, Plain));
        assert_eq!(ranked_sources_from(&sources, 100, 60).len(), 3);
        assert_eq!(ranked_sources_from(&sources[..2], 100, 60)[0].compression, Zstd);
    }

    #[test]
    fn bzip2_is_chosen_for_its_size_only() {
        assert_eq!(best(&[(Bzip2, Some(1)), (Plain, Some(100))]), Some(Bzip2));
        assert_eq!(best(&[(Bzip2, None), (Plain, None)]), Some(Plain));
        assert_eq!(best(&[]), None);
    }
}
