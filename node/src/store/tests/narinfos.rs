//! Narinfos, and the journal that keeps them.

use super::*;
use std::fs::{self, OpenOptions};

#[test]
fn narinfos_survive_and_are_superseded() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (data, store) = open(dir.path());
    let (one, two) = (NarHash([1; 32]), NarHash([2; 32]));
    assert_eq!(store.narinfo(&item(1)).expect("read"), None);
    store
        .put_narinfos(&[
            (item(1), one, "first".into()),
            (item(2), one, "second".into()),
            (item(1), two, "first, corrected".into()),
        ])
        .expect("put");
    assert_eq!(store.stats().narinfos, 2);
    store.put_narinfos(&[(item(2), two, "second, corrected".into())]).expect("put");
    store.put_narinfos(&[]).expect("nothing to do");
    store.close();
    drop((store, data));
    let (_data, store) = open(dir.path());
    assert_eq!(store.stats().narinfos, 2);
    assert_eq!(store.narinfo(&item(1)).expect("read").as_deref(), Some(&b"first, corrected"[..]));
    assert_eq!(store.narinfo(&item(2)).expect("read").as_deref(), Some(&b"second, corrected"[..]));
    assert!(store.items_of(&one).expect("items").is_empty());
    assert_eq!(store.items_of(&two).expect("items").len(), 2);
}

#[test]
fn what_is_there_is_not_written_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    put(&store, 7).expect("put");
    let end = store.inner.journal.end();
    put(&store, 7).expect("put again");
    assert_eq!(store.inner.journal.end(), end);
    put(&store, 8).expect("put another");
    assert!(store.inner.journal.end() > end);
}

#[test]
fn a_narinfo_too_long_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    let longest = Bytes::from(vec![b'x'; MAX_NARINFO_BYTES]);
    store.put_narinfos(&[(item(1), NarHash([0; 32]), longest.clone())]).expect("the longest");
    assert_eq!(store.narinfo(&item(1)).expect("read"), Some(longest));
    let longer = Bytes::from(vec![b'x'; MAX_NARINFO_BYTES + 1]);
    let refused = store.put_narinfos(&[(item(2), NarHash([0; 32]), longer)]);
    assert!(matches!(refused, Err(StoreError::NarinfoTooLong { .. })));
}

#[test]
fn a_torn_tail_is_cut_off_wherever_it_tears() {
    let whole = tempfile::tempdir().expect("tempdir");
    {
        let (_data, store) = open(whole.path());
        (0..3).for_each(|number| put(&store, number).expect("put"));
    }
    let journal = fs::read(whole.path().join("narinfos/0000000001.log")).expect("read");
    let last = journal.len() - (8 + 53 + narinfo(2).len());
    for len in (last..journal.len()).chain([last - 1]) {
        for zeros in [0, 40] {
            let dir = tempfile::tempdir().expect("tempdir");
            fs::create_dir(dir.path().join("narinfos")).expect("mkdir");
            let mut torn = journal[..len].to_vec();
            torn.resize(len + zeros, 0);
            fs::write(dir.path().join("narinfos/0000000001.log"), torn).expect("write");
            let (data, store) = open(dir.path());
            assert_narinfo(&store, 0);
            assert_eq!(store.stats().narinfos, if len < last { 1 } else { 2 });
            assert_eq!(store.narinfo(&item(2)).expect("read"), None);
            put(&store, 5).expect("put");
            drop((store, data));
            let (_data, store) = open(dir.path());
            assert_narinfo(&store, 0);
            assert_narinfo(&store, 5);
        }
    }
}

#[test]
fn one_garbled_record_takes_no_other_with_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    {
        let (_data, store) = open(dir.path());
        (1..6).for_each(|number| put(&store, number * 100).expect("put"));
        store.close();
    }
    let path = dir.path().join("narinfos/0000000001.log");
    let mut journal = fs::read(&path).expect("read");
    let at = 8 + (8 + 53 + narinfo(100).len()) + 8 + 53 + 5;
    journal[at] ^= 4;
    fs::write(&path, &journal).expect("write");
    for rebuild in [false, true] {
        if rebuild {
            fs::remove_dir_all(dir.path().join("index")).expect("remove");
        }
        let (_data, store) = open(dir.path());
        assert_eq!(store.narinfo(&item(200)).expect("read"), None);
        for number in [100, 300, 400, 500] {
            assert_narinfo(&store, number);
        }
        assert_eq!(store.stats().narinfos, 4);
        store.close();
    }
}

#[test]
fn the_journal_goes_on_in_a_new_segment() {
    let dir = tempfile::tempdir().expect("tempdir");
    let big = |number: u64| {
        let mut narinfo = octets(number, MAX_NARINFO_BYTES);
        narinfo[0] = b'x';
        (item(number), NarHash([0; 32]), Bytes::from(narinfo))
    };
    {
        let (_data, store) = open(dir.path());
        for start in (0..330).step_by(30) {
            let batch: Vec<_> = (start..start + 30).map(big).collect();
            store.put_narinfos(&batch).expect("put");
        }
        assert_eq!(store.inner.journal.end().segment, 2);
    }
    for rebuild in [false, true] {
        if rebuild {
            fs::remove_dir_all(dir.path().join("index")).expect("remove");
        }
        let (_data, store) = open(dir.path());
        assert_eq!(store.stats().narinfos, 330);
        for number in [0, 255, 256, 257, 258, 300, 329] {
            assert_eq!(store.narinfo(&item(number)).expect("read"), Some(big(number).2));
        }
    }
}

#[test]
fn many_threads_put_at_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    {
        let (_data, store) = open(dir.path());
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let store = &store;
                scope.spawn(move || {
                    for number in 0..60 {
                        // Every narinfo is put by two threads.
                        put(store, (thread / 2) * 1000 + number).expect("put");
                        assert_narinfo(store, (thread / 2) * 1000 + number);
                    }
                });
            }
        });
        assert_eq!(store.stats().narinfos, 240);
    }
    let (_data, store) = open(dir.path());
    assert_eq!(store.stats().narinfos, 240);
    (0..4).for_each(|thread| (0..60).for_each(|n| assert_narinfo(&store, thread * 1000 + n)));
}

#[test]
fn a_journal_shorter_than_the_index_knows_is_believed() {
    let dir = tempfile::tempdir().expect("tempdir");
    {
        let (_data, store) = open(dir.path());
        (0..5).for_each(|number| put(&store, number).expect("put"));
        store.close();
    }
    let path = dir.path().join("narinfos/0000000001.log");
    let file = OpenOptions::new().write(true).open(path).expect("open");
    file.set_len(8 + (8 + 53 + narinfo(0).len()) as u64).expect("cut");
    let (_data, store) = open(dir.path());
    assert_eq!(store.stats().narinfos, 1);
    assert_narinfo(&store, 0);
}
