//! Byte ranges of nars (RFC 9110, section 14): one range a request, as resuming clients send.
//!
//! Several ranges in one request, other units and bad syntax are ignored, which the RFC allows:
//! the client then gets the whole.

use std::ops::Range;

/// A range as a client asks for it, before the length is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// From this offset to the end.
    From(u64),
    /// From the first offset to the last, both included.
    Between(u64, u64),
    /// So many bytes at the end.
    Last(u64),
}

impl ByteRange {
    /// Reads the value of a `Range` header; `None` if it is to be ignored.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let spec = std::str::from_utf8(value).ok()?.trim();
        let (unit, spec) = spec.split_once('=')?;
        if !unit.trim_end().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = spec.trim().split_once('-')?;
        match (first, last) {
            ("", last) => digits(last).map(Self::Last),
            (first, "") => digits(first).map(Self::From),
            (first, last) => {
                let (first, last) = (digits(first)?, digits(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// The offsets that the range selects out of `length` bytes; `None` if it selects nothing
    /// (a 416).
    ///
    /// ```
    /// # use narswarm_node::http::ByteRange;
    /// assert_eq!(ByteRange::Last(10).resolve(100), Some(90..100));
    /// assert_eq!(ByteRange::From(100).resolve(100), None);
    /// ```
    #[must_use]
    pub fn resolve(self, length: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first) => first..length,
            Self::Between(first, last) => first..length.min(last.saturating_add(1)),
            Self::Last(count) => length.saturating_sub(count)..length,
        };
        (range.start < range.end).then_some(range)
    }
}

/// Digits alone: `u64::from_str` would also take a plus sign.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_one_range() {
        assert_eq!(ByteRange::parse(b"bytes=0-499"), Some(ByteRange::Between(0, 499)));
        assert_eq!(ByteRange::parse(b"bytes=500-"), Some(ByteRange::From(500)));
        assert_eq!(ByteRange::parse(b"Bytes=-500"), Some(ByteRange::Last(500)));
    }

    #[test]
    fn ignores_what_it_does_not_understand() {
        for odd in [
            "bytes=0-1,5-6",
            "bytes=5-4",
            "bytes=-",
            "bytes=+1-2",
            "items=0-1",
            "bytes",
            "",
            "bytes=99999999999999999999-",
            "bytes=1 - 2",
        ] {
            assert_eq!(ByteRange::parse(odd.as_bytes()), None, "{odd:?}");
        }
        assert_eq!(ByteRange::parse(b"bytes=\xff-"), None);
    }

    #[test]
    fn resolves_within_the_length() {
        assert_eq!(ByteRange::Between(0, 0).resolve(1), Some(0..1));
        assert_eq!(ByteRange::Between(5, u64::MAX).resolve(10), Some(5..10));
        assert_eq!(ByteRange::Last(u64::MAX).resolve(10), Some(0..10));
        assert_eq!(ByteRange::Last(0).resolve(10), None);
        assert_eq!(ByteRange::From(10).resolve(10), None);
        assert_eq!(ByteRange::From(0).resolve(0), None);
        assert_eq!(ByteRange::Between(12, 15).resolve(10), None);
    }
}
