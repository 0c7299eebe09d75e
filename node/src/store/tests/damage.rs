//! Disks rot, and people delete things.

use super::*;
use crate::store::format::FormatError;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("open");
    let mut octet = [0];
    file.read_exact_at(&mut octet, at).expect("read");
    file.write_all_at(&[octet[0] ^ 0x10], at).expect("write");
}

/// A store of 50 narinfos and three nars, closed.
fn furnished(dir: &Path) -> Vec<Vec<u8>> {
    let (_data, store) = open(dir);
    let nars: Vec<_> = (0..3).map(|seed| octets(seed, PIECE * seed as usize + 10)).collect();
    (0..50).for_each(|number| put(&store, number).expect("put"));
    for nar in &nars {
        import(&store, nar).expect("import");
    }
    assert!(store.set_pinned(&hash_of(&nars[1]), true).expect("pin"));
    store.close();
    nars
}

fn assert_furnished(dir: &Path, nars: &[Vec<u8>]) {
    let (_data, store) = open(dir);
    (0..50).for_each(|number| assert_narinfo(&store, number));
    for nar in nars {
        let held = store.nar(&hash_of(nar)).expect("open").expect("held");
        assert_eq!(read_all(&held), *nar);
    }
    let lens =
        nars.iter().map(|nar| store.nar(&hash_of(nar)).expect("open").expect("held").file_len());
    let stats = StoreStats { narinfos: 50, cached: 3, cached_bytes: lens.sum() };
    assert_eq!(store.stats(), stats);
    let pinned = store.inner.with_index(|index| index.nar(&hash_of(&nars[1]))).expect("entry");
    assert!(pinned.expect("held").pinned);
}

#[test]
fn a_deleted_index_is_made_anew() {
    let dir = tempfile::tempdir().expect("tempdir");
    let nars = furnished(dir.path());
    assert_furnished(dir.path(), &nars);
    for lost in ["index", "index/db", "index/checkpoint.json", "index/db/db", "index/db/conf"] {
        let lost = dir.path().join(lost);
        if lost.is_dir() {
            fs::remove_dir_all(lost).expect("remove");
        } else {
            fs::remove_file(lost).expect("remove");
        }
        assert_furnished(dir.path(), &nars);
    }
}

#[test]
fn an_index_of_another_schema_is_made_anew() {
    let dir = tempfile::tempdir().expect("tempdir");
    let nars = furnished(dir.path());
    let path = dir.path().join("index/checkpoint.json");
    let text = fs::read_to_string(&path).expect("read");
    assert!(text.contains("\"schema\":1,"));
    fs::write(&path, text.replace("\"schema\":1,", "\"schema\":999,")).expect("write");
    assert_furnished(dir.path(), &nars);
    fs::write(&path, "gibberish").expect("write");
    assert_furnished(dir.path(), &nars);
}

#[test]
fn a_damaged_index_is_made_anew() {
    let dir = tempfile::tempdir().expect("tempdir");
    let nars = furnished(dir.path());
    let path = dir.path().join("index/db/db");
    let len = fs::metadata(&path).expect("metadata").len();
    // Whether it is noticed when opening or when reading.
    for (from, to) in [(0, len), (0, 100), (len / 2, len), (10, 11)] {
        let file = OpenOptions::new().write(true).open(&path).expect("open");
        let len = (to - from) as usize;
        file.write_all_at(&octets(from, len), from).expect("write");
        drop(file);
        assert_furnished(dir.path(), &nars);
    }
    fs::write(&path, "short").expect("write");
    assert_furnished(dir.path(), &nars);
}

#[test]
fn nars_are_found_again_without_their_journal() {
    let dir = tempfile::tempdir().expect("tempdir");
    let nars = furnished(dir.path());
    fs::remove_dir_all(dir.path().join("narinfos")).expect("remove");
    let (_data, store) = open(dir.path());
    assert_eq!(store.stats().cached, 3);
    assert_eq!(store.stats().narinfos, 0);
    for nar in &nars {
        assert_eq!(read_all(&store.nar(&hash_of(nar)).expect("open").expect("held")), *nar);
    }
}

#[test]
fn a_flipped_bit_is_noticed_and_the_nar_goes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    let nar = octets(5, 4 * PIECE);
    store.put_narinfos(&[(item(1), hash_of(&nar), narinfo(1))]).expect("put");
    let held = import(&store, &nar).expect("import");
    store.quarantine(&hash_of(&nar), &"a false alarm");
    assert!(store.nar(&hash_of(&nar)).expect("open").is_some());
    flip(held.path(), held.frame_range(2).start + 1000);
    assert!(held.piece(1).is_ok());
    let error = held.piece(2).expect_err("a flipped bit");
    assert!(error.is_damage(), "{error}");
    assert!(error.to_string().contains(&*held.path().to_string_lossy()), "{error}");
    store.quarantine(&hash_of(&nar), &error);
    assert!(store.nar(&hash_of(&nar)).expect("open").is_none());
    assert!(!held.path().exists());
    assert_eq!(store.stats().cached, 0);
    assert_eq!(store.take_withdrawn(), [item(1)]);
    assert!(store.take_withdrawn().is_empty());
    assert_eq!(read_all(&import(&store, &nar).expect("again")), nar);
}

#[test]
fn a_truncated_file_is_noticed_when_opened() {
    for cut in [1, 9, 300, 1 << 18] {
        let dir = tempfile::tempdir().expect("tempdir");
        let nar = octets(5, 4 * PIECE);
        let path = {
            let (_data, store) = open(dir.path());
            import(&store, &nar).expect("import").path().to_owned()
        };
        let file = OpenOptions::new().write(true).open(&path).expect("open");
        let len = file.metadata().expect("metadata").len();
        file.set_len(len - cut).expect("cut");
        let error = HeldNar::open(path.clone(), &hash_of(&nar)).expect_err("cut off");
        assert!(matches!(error, HeldError::Format { source: FormatError::Footer, .. }), "{error}");
        let (_data, store) = open(dir.path());
        assert!(store.nar(&hash_of(&nar)).expect("open").is_none());
        assert!(!path.exists());
        assert_eq!(store.stats(), StoreStats::default());
    }
}

#[test]
fn a_file_under_another_name_is_not_believed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let nars = [octets(1, 100), octets(2, 100)];
    {
        let (_data, store) = open(dir.path());
        let [one, two] = [&nars[0], &nars[1]].map(|nar| import(&store, nar).expect("import"));
        fs::copy(one.path(), two.path()).expect("copy");
        store.close();
    }
    let (_data, store) = open(dir.path());
    assert!(store.nar(&hash_of(&nars[0])).expect("open").is_some());
    assert!(store.nar(&hash_of(&nars[1])).expect("open").is_none());
}

#[test]
fn a_deleted_file_is_not_held() {
    let dir = tempfile::tempdir().expect("tempdir");
    let nar = octets(1, 100);
    {
        let (_data, store) = open(dir.path());
        fs::remove_file(import(&store, &nar).expect("import").path()).expect("remove");
        store.close();
    }
    let (_data, store) = open(dir.path());
    assert_eq!(store.stats().cached, 1);
    assert!(store.nar(&hash_of(&nar)).expect("open").is_none());
    assert_eq!(store.stats(), StoreStats::default());
}
