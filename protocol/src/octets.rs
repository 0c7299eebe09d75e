//! What a node writes down for its next run, as octets: a line that says what it is, numbers
//! little-endian, octets with their length before them as u16, and a BLAKE3 of it all.

const HASH_BYTES: usize = 32;

/// Why octets aren't what a node has written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// They begin otherwise: somebody else's, or of another version.
    #[error("not a file of this kind and version")]
    Magic,
    /// They aren't what was written.
    #[error("the file is damaged")]
    Damaged,
}

/// Puts the hash behind everything.
pub fn seal(mut out: Vec<u8>) -> Vec<u8> {
    let hash = blake3::hash(&out);
    out.extend(hash.as_bytes());
    out
}

/// What stands between `magic` and the hash.
pub fn unseal<'a>(octets: &'a [u8], magic: &[u8]) -> Result<Reader<'a>, SnapshotError> {
    let rest = octets.strip_prefix(magic).ok_or(SnapshotError::Magic)?;
    let body = rest.len().checked_sub(HASH_BYTES).ok_or(SnapshotError::Damaged)?;
    let (whole, hash) = octets.split_at(magic.len() + body);
    if blake3::hash(whole).as_bytes() != hash {
        return Err(SnapshotError::Damaged);
    }
    Ok(Reader(&rest[..body]))
}

/// Octets with their length; what is longer than that can say is cut off.
pub fn put(out: &mut Vec<u8>, octets: &[u8]) {
    let len = octets.len().min(usize::from(u16::MAX));
    out.extend((len as u16).to_le_bytes());
    out.extend(&octets[..len]);
}

/// Takes values from the front.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(*self.take(2)?.first_chunk()?))
    }

    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.take(4)?.first_chunk()?))
    }

    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.take(8)?.first_chunk()?))
    }

    pub fn octets(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(len.into())
    }
}
