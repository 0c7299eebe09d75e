//! The canonical trace: every event that a fetch hears of and everything that it decides, a line
//! each, hashed. Two runs with the same digest did the same.

use crate::agenda::Nanos;
use std::fmt::{Arguments, Write as _};
use std::io::Write as _;

/// Hashes lines, and writes them if somebody wants to read them.
pub struct Trace {
    hasher: blake3::Hasher,
    line: String,
    out: Option<Box<dyn std::io::Write>>,
    lines: u64,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trace({} lines)", self.lines)
    }
}

impl Trace {
    /// A trace that is also written to `out`.
    #[must_use]
    pub fn new(out: Option<Box<dyn std::io::Write>>) -> Self {
        Self { hasher: blake3::Hasher::new(), line: String::new(), out, lines: 0 }
    }

    /// Adds what happened.
    pub fn add(&mut self, at: Nanos, what: Arguments<'_>) {
        self.line.clear();
        // Writing to a string doesn't fail.
        let _ = writeln!(self.line, "{at} {what}");
        self.hasher.update(self.line.as_bytes());
        self.lines += 1;
        if let Some(out) = &mut self.out
            && out.write_all(self.line.as_bytes()).is_err()
        {
            self.out = None;
        }
    }

    /// Lines so far.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// BLAKE3 over all lines, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }

    /// Says whether everything could be written that was to be.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.out.as_mut().map_or(Ok(()), |out| out.flush())
    }
}
