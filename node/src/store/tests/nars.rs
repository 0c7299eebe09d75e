//! Nars in and out.

use super::*;
use narswarm_protocol::piece::{PieceList, hash_piece};
use std::fs;
use std::io;
use std::process::Command;

fn list_of(nar: &[u8]) -> PieceList {
    let layout = layout_of(nar);
    let hashes = nar.chunks(layout.piece_size() as usize).map(hash_piece).collect();
    PieceList::new(layout, hashes).expect("list")
}

fn frames_of(nar: &[u8]) -> Vec<Vec<u8>> {
    nar.chunks(PIECE).map(encode_piece).collect()
}

fn finish(partial: &PartialNar, nar: &[u8]) -> Result<Arc<HeldNar>, StoreError> {
    let list = list_of(nar);
    partial.finish(&list, list.root(&hash_of(nar)))
}

fn empty(store_dir: &Path) -> bool {
    files(&store_dir.join("partial")).is_empty() && files(&store_dir.join("nars")).is_empty()
}

#[test]
fn nars_of_all_sizes_survive() {
    let dir = tempfile::tempdir().expect("tempdir");
    let sizes = [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 77];
    let (data, store) = open(dir.path());
    for (seed, size) in (0..).zip(sizes) {
        let nar = octets(seed, size);
        let mut writer = NarWriter::new(&store, hash_of(&nar), layout_of(&nar)).expect("begin");
        for chunk in nar.chunks(1 + size / 5 + seed as usize * 991) {
            writer.write(chunk).expect("write");
        }
        writer.finish().expect("finish");
    }
    let stats = store.stats();
    assert_eq!(stats.cached, sizes.len() as u64);
    store.close();
    drop((store, data));
    let (_data, store) = open(dir.path());
    assert_eq!(store.stats(), stats);
    for (seed, size) in (0..).zip(sizes) {
        let nar = octets(seed, size);
        let held = store.nar(&hash_of(&nar)).expect("open").expect("held");
        assert_eq!(held.list(), &list_of(&nar));
        assert_eq!(held.root(), list_of(&nar).root(&hash_of(&nar)));
        assert_eq!(read_all(&held), nar);
        assert!(matches!(
            held.piece(layout_of(&nar).piece_count()),
            Err(HeldError::NoSuchPiece { .. })
        ));
        assert!(held.frame(layout_of(&nar).piece_count()).is_err());
        assert!(held.frame(u32::MAX).is_err());
        held.verify().expect("whole");
        if size == 0 {
            // No frame is no zstd stream; the file, which has frames to skip, is one.
            assert_eq!(held.zstd_len(), 0);
            continue;
        }
        let zstd = held.read_zstd(0, held.zstd_len() as usize).expect("read");
        assert_eq!(zstd::decode_all(&zstd[..]).expect("frames alone"), nar);
    }
    assert!(files(&dir.path().join("partial")).is_empty());
}

#[test]
fn a_file_of_the_cache_is_a_zstd_file_for_anyone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    for size in [0, 1, 5 * PIECE + 3] {
        let nar = octets(9, size);
        let held = import(&store, &nar).expect("import");
        let file = fs::read(held.path()).expect("read");
        assert_eq!(zstd::decode_all(&file[..]).expect("with the tail"), nar);
        match Command::new("zstd").args(["-q", "-d", "-c"]).arg(held.path()).output() {
            Ok(output) => {
                assert!(output.status.success(), "{output:?}");
                assert_eq!(output.stdout, nar);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("SKIPPED the part with the zstd program, which is not installed");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Reads by the seek table alone, as a reader of the Zstandard Seekable Format does.
#[test]
fn the_seek_table_leads_to_every_frame() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    let nar = octets(4, 2 * PIECE + 5);
    let file = fs::read(import(&store, &nar).expect("import").path()).expect("read");
    let number = |at: usize| u32::from_le_bytes(*file[at..].first_chunk().expect("four")) as usize;
    let footer = file.len() - 9;
    assert_eq!(number(footer + 5), 0x8F92_EAB1);
    assert_eq!(file[footer + 4], 0);
    let frames = number(footer);
    let table = file.len() - (8 + 8 * frames + 9);
    assert_eq!((number(table), number(table + 4)), (0x184D_2A5E, 8 * frames + 9));
    let (mut at, mut content) = (0, Vec::new());
    for entry in 0..frames {
        let (compressed, decompressed) =
            (number(table + 8 + 8 * entry), number(table + 12 + 8 * entry));
        let frame = zstd::decode_all(&file[at..at + compressed]).expect("frame");
        assert_eq!(frame.len(), decompressed);
        content.extend(frame);
        at += compressed;
    }
    assert_eq!(at, table);
    assert_eq!(content, nar);
}

#[test]
fn what_does_not_match_leaves_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    let nar = octets(1, 10 * PIECE);
    let writer = || NarWriter::new(&store, NarHash([7; 32]), layout_of(&nar)).expect("begin");
    let mut wrong = writer();
    wrong.write(&nar).expect("write");
    let error = wrong.finish().expect_err("another hash");
    assert!(matches!(error, StoreError::Mismatch { found, .. } if found == hash_of(&nar)));
    let mut short = writer();
    short.write(&nar[1..]).expect("write");
    assert!(matches!(short.finish(), Err(StoreError::Size { found_bytes, .. })
        if found_bytes == nar.len() as u64 - 1));
    let mut long = writer();
    long.write(&nar).expect("write");
    assert!(matches!(long.write(&[0]), Err(StoreError::Size { .. })));
    drop(long);
    assert!(empty(dir.path()));
    assert!(store.nar(&NarHash([7; 32])).expect("look").is_none());
    assert_eq!(store.stats(), StoreStats::default());
}

#[test]
fn pieces_come_in_any_order() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    for (seed, order) in (0..).zip([[0, 1, 2, 3], [3, 1, 0, 2], [1, 2, 3, 0]]) {
        let nar = octets(seed, 3 * PIECE + 10);
        let frames = frames_of(&nar);
        let partial = store.begin(&hash_of(&nar), layout_of(&nar)).expect("begin");
        for index in order {
            assert!(!partial.has(index));
            assert_eq!(
                partial.read_frame(index).map_err(|e| e.kind()),
                Err(io::ErrorKind::NotFound)
            );
            assert!(finish(&partial, &nar).is_err());
            partial.write_piece(index, &frames[index as usize]).expect("write");
            // A second copy changes nothing.
            partial.write_piece(index, &frames[index as usize]).expect("write again");
            let len = layout_of(&nar).piece_len(index);
            let start = index as usize * PIECE;
            let piece = partial.read_piece(index, len).expect("read");
            assert_eq!(piece, nar[start..start + len]);
        }
        assert_eq!(partial.have(), [true; 4]);
        let held = finish(&partial, &nar).expect("finish");
        assert_eq!(read_all(&held), nar);
        // Who reads the partial goes on reading.
        assert_eq!(partial.read_piece(0, PIECE).expect("read"), nar[..PIECE]);
    }
    assert!(files(&dir.path().join("partial")).is_empty());
}

#[test]
fn threads_write_and_read_at_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    let nar = octets(3, 40 * PIECE);
    let frames = frames_of(&nar);
    let partial = store.begin(&hash_of(&nar), layout_of(&nar)).expect("begin");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (partial, frames, nar) = (&partial, &frames, &nar);
            scope.spawn(move || {
                for step in 0..40 {
                    let index = (step * 7 + thread * 11) % 40;
                    partial.write_piece(index, &frames[index as usize]).expect("write");
                    // Another thread may be just writing it.
                    if let Ok(piece) = partial.read_piece(index, PIECE) {
                        assert_eq!(piece, nar[index as usize * PIECE..][..PIECE]);
                    }
                }
            });
        }
    });
    assert_eq!(read_all(&finish(&partial, &nar).expect("finish")), nar);
    let bytes = store.stats().cached_bytes;
    assert_eq!(bytes, store.nar(&hash_of(&nar)).expect("open").expect("held").file_len());
}

#[test]
fn a_nar_is_finished_only_when_it_is_right() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    let nar = octets(3, 2 * PIECE);
    let frames = frames_of(&nar);
    let partial = store.begin(&hash_of(&nar), layout_of(&nar)).expect("begin");
    partial.write_piece(0, &frames[0]).expect("write");
    assert!(matches!(finish(&partial, &nar), Err(StoreError::Incomplete { piece: 1, .. })));
    assert!(matches!(
        partial.write_piece(2, &frames[0]),
        Err(StoreError::NoSuchPiece { piece: 2, .. })
    ));
    let short = encode_piece(&nar[..5]);
    assert!(matches!(partial.write_piece(1, &short), Err(StoreError::Frame { piece: 1, .. })));
    partial.write_piece(1, &encode_piece(&vec![1; PIECE])).expect("wrong, but who knows");
    partial.discard(1);
    assert!(!partial.has(1));
    partial.write_piece(1, &frames[1]).expect("write");
    let list = list_of(&octets(4, 2 * PIECE));
    let root = list_of(&nar).root(&hash_of(&nar));
    assert!(matches!(partial.finish(&list, root), Err(StoreError::Root { .. })));
    assert_eq!(read_all(&finish(&partial, &nar).expect("finish")), nar);
}

#[test]
fn abandoned_fetches_leave_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    let nar = octets(3, 20 * PIECE);
    let partial = store.begin(&hash_of(&nar), layout_of(&nar)).expect("begin");
    partial.write_piece(4, &frames_of(&nar)[4]).expect("write");
    partial.abandon();
    partial.write_piece(5, &frames_of(&nar)[5]).expect("ignored");
    drop(partial);
    assert!(empty(dir.path()));
}

#[test]
fn two_fetches_of_one_nar_get_along() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    let nar = octets(3, 2 * PIECE);
    let begin = || {
        let partial = store.begin(&hash_of(&nar), layout_of(&nar)).expect("begin");
        for (index, frame) in (0..).zip(frames_of(&nar)) {
            partial.write_piece(index, &frame).expect("write");
        }
        partial
    };
    let (one, two) = (begin(), begin());
    let first = finish(&one, &nar).expect("finish");
    let second = finish(&two, &nar).expect("finish");
    assert_eq!(first.path(), second.path());
    drop((one, two));
    assert_eq!(store.stats().cached, 1);
    assert!(files(&dir.path().join("partial")).is_empty());
}

#[test]
fn an_interrupted_fetch_goes_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let nar = octets(3, 20 * PIECE);
    let frames = frames_of(&nar);
    {
        let (_data, store) = open(dir.path());
        let partial = store.begin(&hash_of(&nar), layout_of(&nar)).expect("begin");
        for index in [0, 5, 2, 7, 9] {
            partial.write_piece(index, &frames[index as usize]).expect("write");
        }
        partial.discard(9);
    }
    // The disk garbles piece 2 and has cut piece 7 off.
    let path = only_file(&dir.path().join("partial"), ".part");
    let mut file = fs::read(&path).expect("read");
    file[frames[0].len() + frames[5].len() + 100] ^= 1;
    file.truncate(frames[0].len() + frames[5].len() + frames[2].len() + 10);
    fs::write(&path, &file).expect("write");
    let (_data, store) = open(dir.path());
    let partial = store.resume(&hash_of(&nar), layout_of(&nar)).expect("resume");
    let have: Vec<_> = (0..20).filter(|&index| partial.has(index)).collect();
    assert_eq!(have, [0, 5]);
    for (index, frame) in (0..).zip(&frames) {
        partial.write_piece(index, frame).expect("write");
    }
    assert_eq!(read_all(&finish(&partial, &nar).expect("finish")), nar);
    drop(partial);
    assert!(files(&dir.path().join("partial")).is_empty());
}

#[test]
fn what_cannot_be_gone_on_with_is_removed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let nar = octets(3, 20 * PIECE);
    let partial_dir = dir.path().join("partial");
    {
        let (_data, store) = open(dir.path());
        for number in 0..2 {
            let nar = NarHash([number; 32]);
            let partial = store.begin(&nar, layout_of(&octets(3, 20 * PIECE))).expect("begin");
            partial.write_piece(0, &frames_of(&octets(3, PIECE))[0]).expect("write");
        }
        // Too small to be worth it.
        let small = store.begin(&hash_of(&nar), layout_of(&nar[..PIECE])).expect("begin");
        small.write_piece(0, &frames_of(&nar)[0]).expect("write");
    }
    assert_eq!(files(&partial_dir).len(), 4);
    fs::write(partial_dir.join("stray"), "x").expect("write");
    fs::write(partial_dir.join("stray.log"), "x").expect("write");
    let (_data, store) = open(dir.path());
    assert_eq!(files(&partial_dir).len(), 4);
    let begun = store.begin(&NarHash([0; 32]), layout_of(&nar)).expect("begin");
    assert!(!begun.has(0));
    drop(begun);
    // Another size than the log speaks of: somebody has signed another narinfo.
    let other = layout_of(&nar[..19 * PIECE]);
    let resumed = store.resume(&NarHash([1; 32]), other).expect("resume");
    assert!(!resumed.has(0));
    drop(resumed);
    assert!(files(&partial_dir).is_empty());
}

#[test]
fn held_items_come_page_by_page() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    let nars = [octets(1, 10), octets(2, 10)];
    let batch: Vec<_> =
        (0..25).map(|n| (item(n), hash_of(&nars[n as usize % 2]), narinfo(n))).collect();
    store.put_narinfos(&batch).expect("put");
    assert!(store.held_items(None, 10).expect("page").is_empty());
    import(&store, &nars[0]).expect("import");
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.held_items(after, 4).expect("page");
        let Some(&(last, _)) = page.last() else { break };
        assert!(page.len() <= 4);
        after = Some(last);
        found.extend(page);
    }
    let mut expected: Vec<_> = (0..25).step_by(2).map(|n| (item(n), hash_of(&nars[0]))).collect();
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(store.items_of(&hash_of(&nars[1])).expect("items").len(), 12);
    assert!(store.holds(&hash_of(&nars[0])).expect("look"));
    assert!(!store.holds(&hash_of(&nars[1])).expect("look"));
}

#[test]
fn large_layouts_cost_what_they_hold() {
    // A terabyte: 4,096 pieces of 256 MiB. Nothing of that size is allocated before it comes.
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    let layout = PieceLayout::new(1 << 40).expect("layout");
    let partial = store.begin(&NarHash([1; 32]), layout).expect("begin");
    assert_eq!(partial.have().len(), 4096);
    let mut writer = NarWriter::new(&store, NarHash([2; 32]), layout).expect("begin");
    writer.write(&[0; 100]).expect("write");
    drop(writer);
    let tiny = encode_piece(&[0; 100]);
    assert!(matches!(partial.write_piece(4095, &tiny), Err(StoreError::Frame { .. })));
}
