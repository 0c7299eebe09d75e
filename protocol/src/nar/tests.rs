//! Trees through writer and reader, and nars that no tree has.

use super::*;
use crate::limits::MAX_NAR_DEPTH;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tree {
    File { executable: bool, contents: Vec<u8> },
    Symlink(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Tree>),
}

fn write_tree(tree: &Tree, write: &mut impl FnMut(Event<'_>)) {
    match tree {
        Tree::File { executable, contents } => {
            write(Event::File { executable: *executable, size: contents.len() as u64 });
            for part in contents.chunks(5) {
                write(Event::Contents(part));
            }
            write(Event::FileEnd);
        }
        Tree::Symlink(target) => write(Event::Symlink(target)),
        Tree::Directory(entries) => {
            write(Event::Directory);
            for (name, tree) in entries {
                write(Event::Entry(name));
                write_tree(tree, write);
            }
            write(Event::DirectoryEnd);
        }
    }
}

fn nar_of(tree: &Tree) -> Vec<u8> {
    let mut writer = Writer::new();
    let mut nar = Vec::new();
    write_tree(tree, &mut |event| {
        let mut sink = |octets: &[u8]| nar.extend_from_slice(octets);
        writer.write(event, &mut sink).expect("a tree");
    });
    writer.finish().expect("whole");
    assert_eq!(writer.offset(), nar.len() as u64);
    nar
}

type Entries = BTreeMap<Vec<u8>, Tree>;

/// Builds a tree from events.
#[derive(Default)]
struct Builder {
    /// Directories that are open, each with the name of its entry that comes next.
    open: Vec<(Entries, Vec<u8>)>,
    file: Option<(bool, u64, Vec<u8>)>,
    root: Option<Tree>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Directory => self.open.push(Default::default()),
            Event::Entry(name) => self.open.last_mut().expect("open").1 = name.to_vec(),
            Event::DirectoryEnd => {
                let (entries, _) = self.open.pop().expect("open");
                self.place(Tree::Directory(entries));
            }
            Event::File { executable, size } => self.file = Some((executable, size, Vec::new())),
            Event::Contents(octets) => {
                assert!(!octets.is_empty());
                self.file.as_mut().expect("in a file").2.extend_from_slice(octets);
            }
            Event::FileEnd => {
                let (executable, size, contents) = self.file.take().expect("in a file");
                assert_eq!(size, contents.len() as u64);
                self.place(Tree::File { executable, contents });
            }
            Event::Symlink(target) => self.place(Tree::Symlink(target.to_vec())),
        }
    }

    fn place(&mut self, tree: Tree) {
        match self.open.last_mut() {
            Some((entries, name)) => {
                assert!(entries.insert(std::mem::take(name), tree).is_none());
            }
            None => assert!(self.root.replace(tree).is_none()),
        }
    }
}

fn read_tree(nar: &[u8], step: usize) -> Result<Tree, NarError> {
    let mut reader = Reader::new();
    let mut builder = Builder::default();
    for part in nar.chunks(step) {
        reader.push(part, |event| {
            builder.take(event);
            Ok::<(), NarError>(())
        })?;
    }
    reader.finish()?;
    assert_eq!(reader.offset(), nar.len() as u64);
    Ok(builder.root.expect("a root"))
}

fn any_tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(executable, contents)| Tree::File { executable, contents }),
        proptest::collection::vec(1u8.., 1..20).prop_map(Tree::Symlink),
    ];
    let name = proptest::collection::vec(any::<u8>(), 1..12)
        .prop_filter("a name", |name| check_name(name).is_ok());
    leaf.prop_recursive(5, 60, 8, move |inner| {
        proptest::collection::btree_map(name.clone(), inner, 0..8).prop_map(Tree::Directory)
    })
}

/// The strings of a nar, for making nars that no writer makes.
fn spell(strings: &[&[u8]]) -> Vec<u8> {
    let mut nar = Vec::new();
    for text in strings {
        nar.extend_from_slice(&(text.len() as u64).to_le_bytes());
        nar.extend_from_slice(text);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar
}

fn directory_of(names: &[&[u8]]) -> Vec<u8> {
    let mut strings: Vec<&[u8]> = vec![MAGIC, b"(", b"type", b"directory"];
    for name in names {
        strings.extend([&b"entry"[..], b"(", b"name", name, b"node"]);
        strings.extend([&b"("[..], b"type", b"symlink", b"target", b"x", b")", b")"]);
    }
    strings.push(b")");
    spell(&strings)
}

#[test]
fn the_octets_are_those_of_the_format() {
    let script = Tree::File { executable: true, contents: b"#!".to_vec() };
    let strings: [&[u8]; 9] =
        [MAGIC, b"(", b"type", b"regular", b"executable", b"", b"contents", b"#!", b")"];
    assert_eq!(nar_of(&script), spell(&strings));
    let entries = BTreeMap::from([(b"a".to_vec(), Tree::Symlink(b"x".to_vec()))]);
    assert_eq!(nar_of(&Tree::Directory(entries)), directory_of(&[b"a"]));
}

#[test]
fn names_are_held_to_what_a_directory_can_have() {
    let long = [b'x'; MAX_NAR_NAME_BYTES + 1];
    let accepted: [&[&[u8]]; 4] =
        [&[], &[b"a", b"b"], &[b"...", b".a", b"\xff\xfe"], &[&long[1..]]];
    for names in accepted {
        assert!(read_tree(&directory_of(names), 9).is_ok(), "{names:?}");
    }
    let refused: [(&[&[u8]], NameProblem); 8] = [
        (&[b""], NameProblem::Empty),
        (&[b"."], NameProblem::Dots),
        (&[b".."], NameProblem::Dots),
        (&[b"a/b"], NameProblem::Octet),
        (&[b"/"], NameProblem::Octet),
        (&[b"a\0"], NameProblem::Octet),
        (&[b"a", b"a"], NameProblem::Order),
        (&[b"b", b"a"], NameProblem::Order),
    ];
    for (names, expected) in refused {
        let error = read_tree(&directory_of(names), 9).expect_err("refused");
        assert!(matches!(error, NarError::Name { problem, .. } if problem == expected), "{error}");
    }
    let error = read_tree(&directory_of(&[&long]), 9).expect_err("refused");
    assert!(matches!(error, NarError::TooLong { length: 256, limit: 255, .. }), "{error}");
}

#[test]
fn what_is_not_canonical_is_refused() {
    let good = nar_of(&Tree::File { executable: false, contents: b"abc".to_vec() });
    let refused = |nar: &[u8]| read_tree(nar, 11).expect_err("refused");
    assert!(matches!(refused(&good[..good.len() - 1]), NarError::Incomplete { .. }));
    assert!(matches!(refused(&[]), NarError::Incomplete { offset: 0 }));
    let trailing = [&good[..], b"\0"].concat();
    let offset = good.len() as u64;
    assert_eq!(refused(&trailing), NarError::Trailing { offset });
    let mut padded = good.clone();
    let at = good.windows(3).position(|three| three == b"abc").expect("there") + 3;
    padded[at] = 1;
    assert_eq!(refused(&padded), NarError::Padding { offset: at as u64 });
    let strings: [&[&[u8]]; 6] = [
        &[b"nix-archive-2"],
        &[MAGIC, b"(", b"type", b"fifo"],
        &[MAGIC, b"(", b"type", b"regular", b"executable", b"yes"],
        &[MAGIC, b"(", b"type", b"regular", b")"],
        &[MAGIC, b"(", b"type", b"symlink", b"contents"],
        &[MAGIC, b"(", b"type", b"directory", b"entry", b"(", b"node"],
    ];
    for strings in strings {
        let error = refused(&spell(strings));
        assert!(matches!(error, NarError::Token { .. }), "{error}");
    }
    let long = [b'x'; MAX_NAR_TARGET_BYTES + 1];
    let link = |target| spell(&[MAGIC, b"(", b"type", b"symlink", b"target", target, b")"]);
    assert!(read_tree(&link(&long[1..]), 64).is_ok());
    assert!(matches!(refused(&link(&long)), NarError::TooLong { .. }));
    assert!(matches!(refused(&link(b"")), NarError::Target { .. }));
    assert!(matches!(refused(&link(b"a\0b")), NarError::Target { .. }));
}

#[test]
fn size_depth_and_lengths_are_bounded() {
    let good = nar_of(&Tree::File { executable: false, contents: vec![1; 100] });
    let size = good.len() as u64;
    let push = |limit| Reader::with_limit(limit).push(&good, |_| Ok::<(), NarError>(()));
    assert_eq!(push(size), Ok(()));
    assert_eq!(push(size - 1), Err(NarError::Size { limit: size - 1 }));

    let nested = |depth: usize| {
        let mut strings: Vec<&[u8]> = vec![MAGIC];
        for _ in 0..depth {
            strings.extend([&b"("[..], b"type", b"directory", b"entry", b"(", b"name", b"a"]);
            strings.push(b"node");
        }
        strings.extend([&b"("[..], b"type", b"symlink", b"target", b"x", b")"]);
        strings.extend(vec![&b")"[..]; 2 * depth]);
        spell(&strings)
    };
    assert!(read_tree(&nested(MAX_NAR_DEPTH), 999).is_ok());
    let error = read_tree(&nested(MAX_NAR_DEPTH + 1), 999).expect_err("refused");
    assert!(matches!(error, NarError::TooMany { .. }), "{error}");

    // A length that would wrap or be allocated.
    let mut huge = spell(&[MAGIC, b"(", b"type", b"regular", b"contents"]);
    huge.extend_from_slice(&u64::MAX.to_le_bytes());
    let error = read_tree(&huge, 999).expect_err("refused");
    assert!(matches!(error, NarError::TooLong { length: u64::MAX, .. }), "{error}");
}

#[test]
fn a_writer_refuses_what_is_no_tree() {
    let refused = |events: &[Event<'_>]| {
        let mut writer = Writer::new();
        let (last, before) = events.split_last().expect("events");
        for event in before {
            writer.write(*event, &mut |_| ()).expect("well so far");
        }
        let at = writer.offset();
        let error = writer.write(*last, &mut |_| panic!("wrote")).expect_err("refused");
        assert_eq!(writer.offset(), at);
        assert!(writer.finish().is_err() || at > 0);
        error
    };
    let file = Event::File { executable: false, size: 2 };
    for events in [
        &[Event::FileEnd][..],
        &[Event::Entry(b"a")],
        &[file, Event::FileEnd],
        &[file, Event::Contents(b"abc")],
        &[file, file],
        &[Event::Directory, file],
        &[Event::Directory, Event::Entry(b"a"), Event::DirectoryEnd],
        &[Event::Symlink(b"x"), Event::Symlink(b"x")],
    ] {
        assert!(matches!(refused(events), NarError::Sequence { .. }), "{events:?}");
    }
    let twice = [Event::Directory, Event::Entry(b"b"), Event::Symlink(b"x"), Event::Entry(b"b")];
    assert!(matches!(refused(&twice), NarError::Name { problem: NameProblem::Order, .. }));
    assert!(matches!(refused(&[Event::Symlink(b"")]), NarError::Target { .. }));
}

proptest! {
    #[test]
    fn what_is_written_is_read(tree in any_tree(), step in 1usize..100) {
        prop_assert_eq!(read_tree(&nar_of(&tree), step), Ok(tree));
    }

    #[test]
    fn there_is_one_nar_of_a_tree(tree in any_tree(), at: prop::sample::Index, bit in 0u32..8) {
        // A changed nar is refused or the nar of another tree: then it is that tree's only nar.
        let mut nar = nar_of(&tree);
        let at = at.index(nar.len());
        nar[at] ^= 1 << bit;
        if let Ok(other) = read_tree(&nar, 64) {
            prop_assert_ne!(&other, &tree);
            prop_assert_eq!(nar_of(&other), nar);
        }
    }

    #[test]
    fn hostile_octets_never_panic(
        front in proptest::sample::select(vec![0usize, 24, 40, 56, 80, 112]),
        tail in proptest::collection::vec(any::<u8>(), 0..200),
        step in 1usize..64,
    ) {
        let start = directory_of(&[b"a"]);
        let nar = [&start[..front], &tail].concat();
        let _ = read_tree(&nar, step);
    }
}
