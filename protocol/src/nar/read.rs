//! Octets to events, pushed in as they come.
//!
//! Two machines, one in the other: the outer one takes strings apart (length, octets, padding),
//! the inner one knows which string belongs where. Only names, targets and tokens are held, so
//! memory is bounded by their limits and by the depth of the tree.

use super::{Event, MAGIC, NarError, Open, check_target, escape, padding};
use crate::limits::{MAX_NAR_BYTES, MAX_NAR_NAME_BYTES, MAX_NAR_TARGET_BYTES};

/// Which string comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Magic,
    NodeOpen,
    TypeKey,
    Type,
    /// `executable` or `contents`.
    FileField,
    ExecutableValue,
    ContentsKey,
    Contents {
        executable: bool,
    },
    FileClose,
    TargetKey,
    Target,
    SymlinkClose,
    /// `entry` or `)`.
    DirectoryField,
    EntryOpen,
    NameKey,
    Name,
    NodeKey,
    EntryClose,
    Nothing,
}

impl Expect {
    /// For messages.
    fn describe(self) -> &'static str {
        match self {
            Self::Magic => "the nar's magic",
            Self::NodeOpen | Self::EntryOpen => "\"(\"",
            Self::TypeKey => "\"type\"",
            Self::Type => "\"regular\", \"symlink\" or \"directory\"",
            Self::FileField => "\"executable\" or \"contents\"",
            Self::ExecutableValue => "an empty string",
            Self::ContentsKey => "\"contents\"",
            Self::Contents { .. } => "a file's contents",
            Self::FileClose | Self::SymlinkClose | Self::EntryClose => "\")\"",
            Self::TargetKey => "\"target\"",
            Self::Target => "a symlink's target",
            Self::DirectoryField => "\"entry\" or \")\"",
            Self::NameKey => "\"name\"",
            Self::Name => "an entry's name",
            Self::NodeKey => "\"node\"",
            Self::Nothing => "the end",
        }
    }

    /// Most octets of the string.
    fn limit(self) -> u64 {
        match self {
            Self::Contents { .. } => MAX_NAR_BYTES,
            Self::Name => MAX_NAR_NAME_BYTES as u64,
            Self::Target => MAX_NAR_TARGET_BYTES as u64,
            // The longest token is the magic.
            _ => MAGIC.len() as u64,
        }
    }
}

/// Where within a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    /// So many octets of the length are read.
    Length { read: u8, value: u64 },
    /// Octets of the string that are still to come.
    Text { left: u64, padding: u64 },
    /// The same for a file's contents, which are not held.
    Contents { left: u64, padding: u64 },
    /// Zeros that are still to come.
    Padding { left: u64 },
}

const AT_LENGTH: Within = Within::Length { read: 0, value: 0 };

/// Reads one nar.
///
/// After an error the reader is of no further use.
#[derive(Debug, Clone)]
pub struct Reader {
    expect: Expect,
    within: Within,
    text: Vec<u8>,
    open: Open,
    offset: u64,
    limit: u64,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// A reader of a nar of at most [`MAX_NAR_BYTES`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(MAX_NAR_BYTES)
    }

    /// A reader of a nar of at most `limit` octets, such as its NarSize.
    #[must_use]
    pub fn with_limit(limit: u64) -> Self {
        Self {
            expect: Expect::Magic,
            within: AT_LENGTH,
            text: Vec::new(),
            open: Open::default(),
            offset: 0,
            limit,
        }
    }

    /// Octets read so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the nar has been read to its end.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.expect == Expect::Nothing
    }

    /// Takes the next octets of the nar and gives the events that they complete to `sink`.
    ///
    /// # Errors
    /// A [`NarError`] at the first octet that cannot belong to a nar, or whatever `sink` returns.
    pub fn push<E: From<NarError>>(
        &mut self,
        mut input: &[u8],
        mut sink: impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(&octet) = input.first() {
            if self.is_complete() {
                return Err(NarError::Trailing { offset: self.offset }.into());
            }
            let taken = match self.within {
                Within::Length { read, value } => {
                    let value = value | u64::from(octet) << (8 * read);
                    self.within = Within::Length { read: read + 1, value };
                    1
                }
                Within::Text { left, padding } => {
                    let part = prefix(input, left);
                    self.text.extend_from_slice(part);
                    self.within = Within::Text { left: left - part.len() as u64, padding };
                    part.len()
                }
                Within::Contents { left, padding } => {
                    let part = prefix(input, left);
                    sink(Event::Contents(part))?;
                    self.within = Within::Contents { left: left - part.len() as u64, padding };
                    part.len()
                }
                Within::Padding { left } => {
                    if octet != 0 {
                        return Err(NarError::Padding { offset: self.offset }.into());
                    }
                    self.within = Within::Padding { left: left - 1 };
                    1
                }
            };
            input = &input[taken..];
            self.offset += taken as u64;
            if self.offset > self.limit {
                return Err(NarError::Size { limit: self.limit }.into());
            }
            self.settle(&mut sink)?;
        }
        Ok(())
    }

    /// Says that no more octets follow.
    ///
    /// # Errors
    /// [`NarError::Incomplete`] if the nar has not been read to its end.
    pub fn finish(&self) -> Result<(), NarError> {
        if self.is_complete() { Ok(()) } else { Err(NarError::Incomplete { offset: self.offset }) }
    }

    /// Passes on from parts of a string that are complete, through empty ones as well.
    fn settle<E: From<NarError>>(
        &mut self,
        sink: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            self.within = match self.within {
                Within::Length { read: 8, value } => self.begin(value, sink)?,
                Within::Text { left: 0, padding } => Within::Padding { left: padding },
                Within::Contents { left: 0, padding } => Within::Padding { left: padding },
                Within::Padding { left: 0 } => {
                    self.expect = self.end(sink)?;
                    self.text.clear();
                    self.within = AT_LENGTH;
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
    }

    /// The length of a string is known.
    fn begin<E: From<NarError>>(
        &mut self,
        length: u64,
        sink: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<Within, E> {
        let limit = self.expect.limit();
        if length > limit {
            let (offset, what) = (self.offset - 8, self.expect.describe());
            return Err(NarError::TooLong { offset, what, length, limit }.into());
        }
        let padding = padding(length);
        if let Expect::Contents { executable } = self.expect {
            sink(Event::File { executable, size: length })?;
            return Ok(Within::Contents { left: length, padding });
        }
        Ok(Within::Text { left: length, padding })
    }

    /// A string is complete: what it means, and which one comes next.
    fn end<E: From<NarError>>(
        &mut self,
        sink: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<Expect, E> {
        let next = match (self.expect, self.text.as_slice()) {
            (Expect::Magic, MAGIC) => Expect::NodeOpen,
            (Expect::NodeOpen, b"(") => Expect::TypeKey,
            (Expect::TypeKey, b"type") => Expect::Type,
            (Expect::Type, b"regular") => Expect::FileField,
            (Expect::FileField, b"executable") => Expect::ExecutableValue,
            (Expect::ExecutableValue, b"") => Expect::ContentsKey,
            (Expect::ContentsKey, b"contents") => Expect::Contents { executable: true },
            (Expect::FileField, b"contents") => Expect::Contents { executable: false },
            (Expect::Contents { .. }, _) => {
                sink(Event::FileEnd)?;
                Expect::FileClose
            }
            (Expect::Type, b"symlink") => Expect::TargetKey,
            (Expect::TargetKey, b"target") => Expect::Target,
            (Expect::Target, target) => {
                check_target(target)?;
                sink(Event::Symlink(target))?;
                Expect::SymlinkClose
            }
            (Expect::Type, b"directory") => {
                self.open.push()?;
                sink(Event::Directory)?;
                Expect::DirectoryField
            }
            (Expect::DirectoryField, b"entry") => Expect::EntryOpen,
            (Expect::EntryOpen, b"(") => Expect::NameKey,
            (Expect::NameKey, b"name") => Expect::Name,
            (Expect::Name, name) => {
                self.open.enter(name)?;
                sink(Event::Entry(name))?;
                Expect::NodeKey
            }
            (Expect::NodeKey, b"node") => Expect::NodeOpen,
            (Expect::EntryClose, b")") => Expect::DirectoryField,
            (Expect::FileClose | Expect::SymlinkClose, b")") => self.after_node(),
            (Expect::DirectoryField, b")") => {
                self.open.pop();
                sink(Event::DirectoryEnd)?;
                self.after_node()
            }
            (expect, found) => return Err(self.unexpected(expect, found).into()),
        };
        Ok(next)
    }

    fn after_node(&self) -> Expect {
        if self.open.depth() == 0 { Expect::Nothing } else { Expect::EntryClose }
    }

    fn unexpected(&self, expect: Expect, found: &[u8]) -> NarError {
        let length = found.len() as u64;
        let offset = self.offset.saturating_sub(8 + length + padding(length));
        NarError::Token { offset, expected: expect.describe(), found: escape(found) }
    }
}

/// At most `most` octets off the front.
fn prefix(input: &[u8], most: u64) -> &[u8] {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    &input[..input.len().min(most)]
}
