//! Events to octets: the one canonical nar of a tree, or a refusal.

use super::{Event, MAGIC, NarError, Open, check_target, padding};

/// What may be written next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// The root of the tree.
    Root,
    /// The tree of an entry that has been named.
    Node,
    /// An entry, or the end of the directory.
    Entry,
    /// So many octets of a file of this size.
    Contents {
        left: u64,
        size: u64,
    },
    Nothing,
}

impl Expect {
    /// For messages.
    fn describe(self) -> &'static str {
        match self {
            Self::Root | Self::Node => "a directory, file or symlink",
            Self::Entry => "an entry or the directory's end",
            Self::Contents { left: 0, .. } => "the file's end",
            Self::Contents { .. } => "no more than the rest of the file",
            Self::Nothing => "nothing",
        }
    }
}

/// Writes one nar.
///
/// ```
/// use narswarm_protocol::nar::{Event, Writer};
/// let mut nar = Vec::new();
/// let mut writer = Writer::new();
/// let tree =
///     [Event::File { executable: false, size: 2 }, Event::Contents(b"hi"), Event::FileEnd];
/// for event in tree {
///     writer.write(event, &mut |octets| nar.extend_from_slice(octets))?;
/// }
/// writer.finish()?;
/// assert_eq!(nar.len(), 120);
/// # Ok::<(), narswarm_protocol::nar::NarError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Writer {
    expect: Expect,
    open: Open,
    offset: u64,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// A writer that has written nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { expect: Expect::Root, open: Open::default(), offset: 0 }
    }

    /// Octets written so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Gives the octets of the next event to `sink`, in order, in one or more parts.
    ///
    /// # Errors
    /// Events out of sequence, and trees that no nar can hold. Nothing is written then.
    pub fn write(
        &mut self,
        event: Event<'_>,
        sink: &mut impl FnMut(&[u8]),
    ) -> Result<(), NarError> {
        let offset = &mut self.offset;
        let mut out = |octets: &[u8]| {
            if !octets.is_empty() {
                *offset += octets.len() as u64;
                sink(octets);
            }
        };
        if self.expect == Expect::Root
            && matches!(event, Event::Directory | Event::File { .. } | Event::Symlink(_))
        {
            if let Event::Symlink(target) = event {
                check_target(target)?;
            }
            string(&mut out, MAGIC);
            self.expect = Expect::Node;
        }
        self.expect = match (self.expect, event) {
            (Expect::Node, Event::Directory) => {
                self.open.push()?;
                strings(&mut out, &[b"(", b"type", b"directory"]);
                Expect::Entry
            }
            (Expect::Entry, Event::Entry(name)) => {
                self.open.enter(name)?;
                strings(&mut out, &[b"entry", b"(", b"name", name, b"node"]);
                Expect::Node
            }
            (Expect::Entry, Event::DirectoryEnd) => {
                self.open.pop();
                close(&mut out, self.open.depth())
            }
            (Expect::Node, Event::File { executable, size }) => {
                strings(&mut out, &[b"(", b"type", b"regular"]);
                if executable {
                    strings(&mut out, &[b"executable", b""]);
                }
                string(&mut out, b"contents");
                out(&size.to_le_bytes());
                Expect::Contents { left: size, size }
            }
            (Expect::Contents { left, size }, Event::Contents(octets))
                if octets.len() as u64 <= left =>
            {
                out(octets);
                Expect::Contents { left: left - octets.len() as u64, size }
            }
            (Expect::Contents { left: 0, size }, Event::FileEnd) => {
                pad(&mut out, size);
                close(&mut out, self.open.depth())
            }
            (Expect::Node, Event::Symlink(target)) => {
                check_target(target)?;
                strings(&mut out, &[b"(", b"type", b"symlink", b"target", target]);
                close(&mut out, self.open.depth())
            }
            (expect, event) => {
                let event = describe(event);
                return Err(NarError::Sequence { event, expected: expect.describe() });
            }
        };
        Ok(())
    }

    /// Says that no more events follow.
    ///
    /// # Errors
    /// [`NarError::Incomplete`] if the tree is not complete.
    pub fn finish(&self) -> Result<(), NarError> {
        if self.expect == Expect::Nothing {
            Ok(())
        } else {
            Err(NarError::Incomplete { offset: self.offset })
        }
    }
}

fn describe(event: Event<'_>) -> &'static str {
    match event {
        Event::Directory => "directory",
        Event::Entry(_) => "entry",
        Event::DirectoryEnd => "end of a directory",
        Event::File { .. } => "file",
        Event::Contents(_) => "contents",
        Event::FileEnd => "end of a file",
        Event::Symlink(_) => "symlink",
    }
}

/// Closes a node, and the entry that it is the tree of.
fn close(out: &mut impl FnMut(&[u8]), depth: usize) -> Expect {
    string(out, b")");
    if depth == 0 {
        return Expect::Nothing;
    }
    string(out, b")");
    Expect::Entry
}

pub(super) fn strings(out: &mut impl FnMut(&[u8]), all: &[&[u8]]) {
    for octets in all {
        string(out, octets);
    }
}

pub(super) fn string(out: &mut impl FnMut(&[u8]), octets: &[u8]) {
    let length = octets.len() as u64;
    out(&length.to_le_bytes());
    out(octets);
    pad(out, length);
}

fn pad(out: &mut impl FnMut(&[u8]), length: u64) {
    // Less than 8, so it fits.
    out(&[0; 8][..padding(length) as usize]);
}
