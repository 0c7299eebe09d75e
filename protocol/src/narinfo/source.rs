//! Groups of URL, Compression and FileSize: where a nar may be had.
//!
//! Guix collects the values of each of the three fields and puts the nth of each together, down to
//! the shortest collection. So a field that is missing in one group shifts those of all later
//! groups; what is written here is always complete.

use super::record::Record;
use crate::limits;
use std::fmt;

/// How the bytes behind a narinfo's URL are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// What lzip writes.
    Lzip,
    /// RFC 8878.
    Zstd,
    /// What xz writes.
    Xz,
    /// What bzip2 writes.
    Bzip2,
}

impl Compression {
    const ALL: [Self; 6] = [Self::None, Self::Gzip, Self::Lzip, Self::Zstd, Self::Xz, Self::Bzip2];

    /// Reads the value of a `Compression` field.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|compression| compression.name() == name)
    }

    /// The value of a `Compression` field.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Lzip => "lzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One URL/Compression/FileSize group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarSource {
    /// As written: absolute, or relative to the substitute server's base.
    pub url: String,
    /// How the bytes there are compressed.
    pub compression: Compression,
    /// Octets to download, where said.
    pub file_size: Option<u64>,
}

/// Reads the groups as Guix puts them together, leaving out those that nobody could use.
pub(super) fn read(record: &Record) -> Box<[NarSource]> {
    let mut sizes = record.all("FileSize").map(|field| field.value.parse().ok());
    record
        .all("URL")
        .zip(record.all("Compression"))
        .map(|(url, compression)| {
            let file_size = sizes.next().flatten();
            let compression = Compression::parse(compression.value)?;
            is_url(url.value).then(|| NarSource {
                url: url.value.to_owned(),
                compression,
                file_size,
            })
        })
        .take(limits::MAX_NAR_SOURCES)
        .flatten()
        .collect()
}

/// Writes complete groups, leaving out those with a malformed URL.
pub(super) fn write(groups: &[NarSource], nar_size: u64, text: &mut String) {
    for group in groups.iter().filter(|group| is_url(&group.url)) {
        let size = match group.compression {
            Compression::None => group.file_size.or(Some(nar_size)),
            _ => group.file_size,
        };
        // A size that isn't known is left empty, which Guix reads as unknown.
        let size = size.map_or_else(String::new, |size| size.to_string());
        text.push_str(&format!(
            "URL: {}\nCompression: {}\nFileSize: {size}\n",
            group.url, group.compression
        ));
    }
}

/// Short enough, and of printable ASCII without blanks: fit for a line and for a request.
pub(super) fn is_url(url: &str) -> bool {
    (1..=limits::MAX_NAR_URL_BYTES).contains(&url.len())
        && url.bytes().all(|c| c.is_ascii_graphic())
}

/// How many fields of each kind are signed, before which the unsigned ones cannot be put.
#[derive(Debug, Clone, Copy)]
pub(super) struct SignedGroups {
    urls: usize,
    compressions: usize,
    file_sizes: usize,
}

impl SignedGroups {
    pub fn count(record: &Record, signed_len: usize) -> Self {
        let signed = |name| record.all(name).filter(|field| field.end <= signed_len).count();
        Self {
            urls: signed("URL"),
            compressions: signed("Compression"),
            file_sizes: signed("FileSize"),
        }
    }

    pub fn any(self) -> bool {
        self.urls + self.compressions + self.file_sizes > 0
    }

    /// Completes the signed groups, so that the nth of each field below them belong together.
    pub fn pad(self, text: &mut String) {
        for _ in self.compressions..self.urls {
            // Guix has no default compression: it passes over such a group, and over this one.
            text.push_str("Compression: unknown\n");
        }
        for _ in self.file_sizes..self.urls {
            text.push_str("FileSize: \n");
        }
    }
}
