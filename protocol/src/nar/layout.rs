//! Where in its nar each part of a tree lies, so that any octets of the nar can be made by
//! seeking, with no copy of it anywhere.
//!
//! A [`Layout`] knows of a tree what its nar depends on besides the contents of files: names,
//! sizes, targets, who may be executed. It keeps 32 octets and a name for each entry, and makes
//! the octets between the contents when they are asked for. What no nar can hold it refuses, as
//! the writer does.

use super::write::{string, strings};
use super::{MAGIC, NarError, Open, check_target, padding};
use crate::limits::MAX_NAR_BYTES;
use std::ops::Range;

/// Parent of the root.
const NONE: u32 = u32::MAX;

/// A node of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node<'a> {
    /// A directory; what is in it follows, up to [`LayoutBuilder::leave`].
    Directory,
    /// A regular file.
    File {
        /// Whether its owner may execute it.
        executable: bool,
        /// Octets of its contents.
        size: u64,
    },
    /// A symlink and its target.
    Symlink(&'a [u8]),
}

/// A file of a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId(u32);

/// A stretch of a nar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part<'a> {
    /// Octets that follow from the layout alone.
    Octets(&'a [u8]),
    /// Contents of a file, never empty.
    Contents {
        /// Which file.
        file: FileId,
        /// Which of its octets.
        range: Range<u64>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    DirectoryEnd,
    File { executable: bool },
    Symlink,
}

/// A node, or the end of a directory. Records lie in the order of the nar and cover it.
#[derive(Debug, Clone)]
struct Record {
    /// Where its octets begin.
    offset: u64,
    /// Octets of a file's contents or of a symlink's target.
    size: u64,
    /// Where the name lies in `names`; a symlink's target follows it.
    name_at: u32,
    /// The record of the directory that it is in, or, at a directory's end, of the directory.
    parent: u32,
    name_len: u8,
    kind: Kind,
}

/// Builds a layout from nodes in the order of the nar: depth first, names by their octets.
#[derive(Debug, Clone)]
pub struct LayoutBuilder {
    records: Vec<Record>,
    names: Vec<u8>,
    open: Open,
    /// The directories that are open, by their records.
    parents: Vec<u32>,
    /// The name of the node that comes next.
    next_name: Option<(u32, u8)>,
    offset: u64,
}

impl Default for LayoutBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayoutBuilder {
    /// A builder that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            records: Vec::new(),
            names: Vec::new(),
            open: Open::default(),
            parents: Vec::new(),
            next_name: None,
            offset: 0,
        }
    }

    /// Names the next entry of the innermost directory; its node follows.
    ///
    /// # Errors
    /// Names that no directory has there, and too many of them.
    pub fn entry(&mut self, name: &[u8]) -> Result<(), NarError> {
        if self.next_name.is_some() {
            return Err(NarError::Sequence { event: "entry", expected: "a node" });
        }
        self.open.enter(name)?;
        let name_at = self.keep(name)?;
        self.next_name = Some((name_at, name.len() as u8));
        Ok(())
    }

    /// The root, or the node of the entry that was named.
    ///
    /// # Errors
    /// Nodes that no nar has there.
    pub fn node(&mut self, node: Node<'_>) -> Result<(), NarError> {
        let is_root = self.records.is_empty();
        if !is_root && self.next_name.is_none() {
            return Err(NarError::Sequence { event: "node", expected: "an entry" });
        }
        let (name_at, name_len) = self.next_name.take().unwrap_or_default();
        let parent = self.parents.last().copied().unwrap_or(NONE);
        let (kind, size) = match node {
            Node::Directory => {
                self.open.push()?;
                (Kind::Directory, 0)
            }
            Node::File { executable, size } => (Kind::File { executable }, size),
            Node::Symlink(target) => {
                check_target(target)?;
                self.keep(target)?;
                (Kind::Symlink, target.len() as u64)
            }
        };
        if kind == Kind::Directory {
            self.parents.push(self.records.len() as u32);
        }
        self.push(Record { offset: self.offset, size, name_at, parent, name_len, kind })
    }

    /// Ends the innermost directory.
    ///
    /// # Errors
    /// When none is open.
    pub fn leave(&mut self) -> Result<(), NarError> {
        let parent = self.parents.pop().filter(|_| self.next_name.is_none());
        let Some(parent) = parent else {
            return Err(NarError::Sequence { event: "end of a directory", expected: "a node" });
        };
        self.open.pop();
        let kind = Kind::DirectoryEnd;
        self.push(Record { offset: self.offset, size: 0, name_at: 0, parent, name_len: 0, kind })
    }

    /// The layout.
    ///
    /// # Errors
    /// [`NarError::Incomplete`] if the tree is not complete.
    pub fn finish(mut self) -> Result<Layout, NarError> {
        if self.records.is_empty() || !self.parents.is_empty() {
            return Err(NarError::Incomplete { offset: self.offset });
        }
        self.records.shrink_to_fit();
        self.names.shrink_to_fit();
        Ok(Layout { records: self.records, names: self.names, nar_size: self.offset })
    }

    fn keep(&mut self, octets: &[u8]) -> Result<u32, NarError> {
        let at = self.names.len();
        let limit = u64::from(u32::MAX);
        if (at + octets.len()) as u64 > limit {
            return Err(NarError::TooMany { what: "octets of names and targets", limit });
        }
        self.names.extend_from_slice(octets);
        Ok(at as u32)
    }

    fn push(&mut self, record: Record) -> Result<(), NarError> {
        let mut octets = Vec::new();
        record.write_head(&self.names, &mut octets);
        record.write_tail(&mut octets);
        let contents = if matches!(record.kind, Kind::File { .. }) { record.size } else { 0 };
        let end = self.offset.checked_add(contents).map(|end| end + octets.len() as u64);
        self.offset = end
            .filter(|&end| end <= MAX_NAR_BYTES)
            .ok_or(NarError::Size { limit: MAX_NAR_BYTES })?;
        self.records.push(record);
        Ok(())
    }
}

impl Record {
    fn is_root(&self) -> bool {
        // The end of the root directory names the root as its parent.
        match self.kind {
            Kind::DirectoryEnd => self.parent == 0,
            _ => self.parent == NONE,
        }
    }

    /// What comes before a file's contents; of other records all.
    fn write_head(&self, names: &[u8], out: &mut Vec<u8>) {
        let mut out = |octets: &[u8]| out.extend_from_slice(octets);
        let name_at = self.name_at as usize;
        let name_end = name_at + usize::from(self.name_len);
        if self.kind != Kind::DirectoryEnd {
            if self.is_root() {
                string(&mut out, MAGIC);
            } else {
                strings(&mut out, &[b"entry", b"(", b"name", &names[name_at..name_end], b"node"]);
            }
        }
        match self.kind {
            Kind::Directory => strings(&mut out, &[b"(", b"type", b"directory"]),
            Kind::File { executable } => {
                strings(&mut out, &[b"(", b"type", b"regular"]);
                if executable {
                    strings(&mut out, &[b"executable", b""]);
                }
                string(&mut out, b"contents");
                out(&self.size.to_le_bytes());
            }
            Kind::Symlink => {
                let target = &names[name_end..name_end + self.size as usize];
                strings(&mut out, &[b"(", b"type", b"symlink", b"target", target]);
                self.close(&mut out);
            }
            Kind::DirectoryEnd => self.close(&mut out),
        }
    }

    /// What comes after a file's contents; of other records nothing.
    fn write_tail(&self, out: &mut Vec<u8>) {
        if matches!(self.kind, Kind::File { .. }) {
            let mut out = |octets: &[u8]| out.extend_from_slice(octets);
            out(&[0; 8][..padding(self.size) as usize]);
            self.close(&mut out);
        }
    }

    /// Closes the node, and the entry that it is the tree of.
    fn close(&self, out: &mut impl FnMut(&[u8])) {
        string(out, b")");
        if !self.is_root() {
            string(out, b")");
        }
    }
}

/// The layout of a tree's nar.
#[derive(Debug, Clone)]
pub struct Layout {
    records: Vec<Record>,
    names: Vec<u8>,
    nar_size: u64,
}

impl Layout {
    /// Octets of the nar.
    #[must_use]
    pub fn nar_size(&self) -> u64 {
        self.nar_size
    }

    /// Octets that the layout takes in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.records.capacity() * size_of::<Record>() + self.names.capacity()
    }

    /// Appends to `path` the way from the root of the tree to a file, without a leading slash;
    /// nothing if the root is the file.
    pub fn write_path(&self, file: FileId, path: &mut Vec<u8>) {
        let mut way = Vec::new();
        let mut record = &self.records[file.0 as usize];
        while !record.is_root() {
            way.push(record);
            record = &self.records[record.parent as usize];
        }
        for (depth, record) in way.iter().rev().enumerate() {
            if depth > 0 {
                path.push(b'/');
            }
            let at = record.name_at as usize;
            path.extend_from_slice(&self.names[at..at + usize::from(record.name_len)]);
        }
    }

    /// Gives to `take` what the octets in `range` consist of, in order; the range is cut to the
    /// nar.
    ///
    /// # Errors
    /// The first error that `take` gives.
    pub fn parts<E>(
        &self,
        range: Range<u64>,
        take: &mut impl FnMut(Part<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = range.end.min(self.nar_size);
        let mut octets = Vec::new();
        // The last record that begins at or before the range: the first begins at 0.
        let first = self.records.partition_point(|record| record.offset <= range.start);
        for index in first.saturating_sub(1)..self.records.len() {
            let record = &self.records[index];
            if record.offset >= end {
                break;
            }
            octets.clear();
            record.write_head(&self.names, &mut octets);
            let contents_at = record.offset + octets.len() as u64;
            give_octets(record.offset, &octets, &range, take)?;
            if matches!(record.kind, Kind::File { .. }) {
                let contents_end = contents_at + record.size;
                let part = range.start.max(contents_at)..end.min(contents_end);
                if part.start < part.end {
                    let range = part.start - contents_at..part.end - contents_at;
                    take(Part::Contents { file: FileId(index as u32), range })?;
                }
                octets.clear();
                record.write_tail(&mut octets);
                give_octets(contents_end, &octets, &range, take)?;
            }
        }
        Ok(())
    }
}

/// Gives those of `octets`, which lie at `offset`, that are in the range.
fn give_octets<E>(
    offset: u64,
    octets: &[u8],
    range: &Range<u64>,
    take: &mut impl FnMut(Part<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let len = octets.len() as u64;
    let start = range.start.saturating_sub(offset).min(len) as usize;
    let end = range.end.saturating_sub(offset).min(len) as usize;
    if start < end { take(Part::Octets(&octets[start..end])) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::{Event, Writer};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    #[derive(Debug, Clone)]
    enum Tree {
        Directory(BTreeMap<Vec<u8>, Tree>),
        File(bool, Vec<u8>),
        Symlink(Vec<u8>),
    }

    fn trees() -> impl Strategy<Value = Tree> {
        let octets = |len| prop::collection::vec(any::<u8>(), len);
        let name =
            octets(1..12).prop_filter("a name", |name| super::super::check_name(name).is_ok());
        let target = octets(1..20).prop_filter("a target", |target| !target.contains(&0));
        let leaf = prop_oneof![
            (any::<bool>(), octets(0..40)).prop_map(|(executable, c)| Tree::File(executable, c)),
            target.prop_map(Tree::Symlink),
        ];
        leaf.prop_recursive(4, 24, 5, move |inner| {
            prop::collection::btree_map(name.clone(), inner, 0..5).prop_map(Tree::Directory)
        })
    }

    fn write(tree: &Tree, writer: &mut Writer, nar: &mut Vec<u8>) {
        let mut event = |writer: &mut Writer, event| {
            writer.write(event, &mut |octets| nar.extend_from_slice(octets)).expect("a tree");
        };
        match tree {
            Tree::Directory(entries) => {
                event(writer, Event::Directory);
                for (name, tree) in entries {
                    writer
                        .write(Event::Entry(name), &mut |octets| nar.extend_from_slice(octets))
                        .expect("an entry");
                    write(tree, writer, nar);
                }
                writer
                    .write(Event::DirectoryEnd, &mut |octets| nar.extend_from_slice(octets))
                    .expect("an end");
            }
            Tree::File(executable, contents) => {
                let size = contents.len() as u64;
                event(writer, Event::File { executable: *executable, size });
                event(writer, Event::Contents(contents));
                event(writer, Event::FileEnd);
            }
            Tree::Symlink(target) => event(writer, Event::Symlink(target)),
        }
    }

    fn lay_out(tree: &Tree, builder: &mut LayoutBuilder) {
        match tree {
            Tree::Directory(entries) => {
                builder.node(Node::Directory).expect("a directory");
                for (name, tree) in entries {
                    builder.entry(name).expect("an entry");
                    lay_out(tree, builder);
                }
                builder.leave().expect("the end");
            }
            Tree::File(executable, contents) => {
                let size = contents.len() as u64;
                builder.node(Node::File { executable: *executable, size }).expect("a file");
            }
            Tree::Symlink(target) => builder.node(Node::Symlink(target)).expect("a symlink"),
        }
    }

    fn find<'t>(tree: &'t Tree, path: &[u8]) -> &'t [u8] {
        match tree {
            Tree::File(_, contents) => {
                assert!(path.is_empty());
                contents
            }
            Tree::Directory(entries) => {
                let cut = path.iter().position(|&octet| octet == b'/').unwrap_or(path.len());
                find(&entries[&path[..cut]], path.get(cut + 1..).unwrap_or_default())
            }
            Tree::Symlink(_) => panic!("only files have contents"),
        }
    }

    fn read(layout: &Layout, tree: &Tree, range: Range<u64>) -> Vec<u8> {
        let mut nar = Vec::new();
        let Ok(()) = layout.parts::<Infallible>(range, &mut |part| {
            match part {
                Part::Octets(octets) => nar.extend_from_slice(octets),
                Part::Contents { file, range } => {
                    let mut path = Vec::new();
                    layout.write_path(file, &mut path);
                    let range = range.start as usize..range.end as usize;
                    nar.extend_from_slice(&find(tree, &path)[range]);
                }
            }
            Ok(())
        });
        nar
    }

    proptest! {
        #[test]
        fn any_octets_are_those_of_the_nar(tree in trees(), cuts: Vec<u16>) {
            let (mut writer, mut nar) = (Writer::new(), Vec::new());
            write(&tree, &mut writer, &mut nar);
            let mut builder = LayoutBuilder::new();
            lay_out(&tree, &mut builder);
            let layout = builder.finish().expect("complete");
            let size = nar.len() as u64;
            prop_assert_eq!(layout.nar_size(), size);
            prop_assert_eq!(&read(&layout, &tree, 0..size + 9), &nar);
            for pair in cuts.windows(2) {
                let (a, b) = (u64::from(pair[0]) % (size + 1), u64::from(pair[1]) % (size + 1));
                let range = a.min(b)..a.max(b);
                let expected = &nar[range.start as usize..range.end as usize];
                prop_assert_eq!(read(&layout, &tree, range), expected);
            }
        }
    }

    #[test]
    fn what_no_nar_holds_is_refused() {
        let mut builder = LayoutBuilder::new();
        assert!(builder.entry(b"a").is_err(), "no directory is open");
        assert!(builder.leave().is_err());
        builder.node(Node::Directory).expect("the root");
        assert!(builder.node(Node::Directory).is_err(), "unnamed");
        builder.entry(b"b").expect("an entry");
        assert!(builder.entry(b"c").is_err(), "the node of the last is missing");
        builder.node(Node::File { executable: false, size: 1 }).expect("a file");
        let error = builder.entry(b"a").expect_err("out of order");
        assert!(matches!(error, NarError::Name { .. }));
        builder.entry(b"c").expect("an entry");
        let huge = Node::File { executable: false, size: u64::MAX };
        assert!(matches!(builder.node(huge), Err(NarError::Size { .. })));
        assert!(matches!(builder.finish(), Err(NarError::Incomplete { .. })));
        assert!(LayoutBuilder::new().finish().is_err());
    }
}
