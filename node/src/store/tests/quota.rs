//! Who goes when room is needed.

use super::*;

fn small(max_bytes: u64) -> StoreConfig {
    StoreConfig { max_bytes, headroom_bytes: 0, ..StoreConfig::default() }
}

/// Octets of the file that holds such a nar.
fn file_len() -> u64 {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open(dir.path());
    import(&store, &octets(0, PIECE)).expect("import").file_len()
}

#[test]
fn the_longest_unused_go_first_and_readers_read_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open_with(dir.path(), small(3 * file_len() + 2000));
    let nars: Vec<_> = (0..5).map(|seed| octets(seed, PIECE)).collect();
    let hashes: Vec<_> = nars.iter().map(|nar| hash_of(nar)).collect();
    for number in 0..5 {
        let record = (item(number), hashes[number as usize], narinfo(number));
        store.put_narinfos(&[record]).expect("put");
    }
    let read: Vec<_> = nars[..3].iter().map(|nar| import(&store, nar).expect("import")).collect();
    let later = use_time::now() + 1;
    store.inner.touch_at(&hashes[0], later + 1);
    store.inner.touch_at(&hashes[2], later);
    import(&store, &nars[3]).expect("import");
    assert!(!store.holds(&hashes[1]).expect("look"), "the longest unused");
    assert_eq!(store.take_withdrawn(), [item(1)]);
    assert!(store.set_pinned(&hashes[3], true).expect("pin"));
    import(&store, &nars[4]).expect("import");
    assert!(!store.holds(&hashes[2]).expect("look"), "used before the first, and not pinned");
    assert!(store.holds(&hashes[0]).expect("look"));
    assert!(store.holds(&hashes[3]).expect("look"));
    for (held, nar) in read.iter().zip(&nars) {
        assert_eq!(read_all(held), *nar);
    }
    assert!(store.stats().cached_bytes <= 3 * file_len() + 2000);
}

#[test]
fn what_cannot_fit_is_refused_and_costs_only_what_may_go() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open_with(dir.path(), small(3 * file_len()));
    let (pinned, other) = (octets(1, PIECE), octets(2, PIECE));
    import(&store, &pinned).expect("import");
    assert!(store.set_pinned(&hash_of(&pinned), true).expect("pin"));
    import(&store, &other).expect("import");
    let error = import(&store, &octets(3, 6 * PIECE)).expect_err("too large");
    assert!(matches!(error, StoreError::OverQuota { .. }), "{error}");
    assert!(error.is_full());
    assert!(store.holds(&hash_of(&pinned)).expect("look"));
    assert!(!store.holds(&hash_of(&other)).expect("look"));
    assert!(files(&dir.path().join("partial")).is_empty());
    import(&store, &other).expect("there is room again");
}

#[test]
fn leftovers_go_before_nars() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_data, store) = open_with(dir.path(), small(4 * file_len()));
    let nars: Vec<_> = (0..4).map(|seed| octets(seed, PIECE)).collect();
    import(&store, &nars[0]).expect("import");
    import(&store, &nars[1]).expect("import");
    let large = octets(9, 10 * PIECE);
    let partial = store.begin(&hash_of(&large), layout_of(&large)).expect("begin");
    partial.write_piece(0, &encode_piece(&large[..PIECE])).expect("write");
    drop(partial);
    import(&store, &nars[2]).expect("import");
    import(&store, &nars[3]).expect("import");
    assert!(files(&dir.path().join("partial")).is_empty());
    for nar in &nars[1..] {
        assert!(store.holds(&hash_of(nar)).expect("look"));
    }
}

#[test]
fn the_disks_headroom_is_left_alone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = StoreConfig { headroom_bytes: u64::MAX, ..StoreConfig::default() };
    let (_data, store) = open_with(dir.path(), config);
    // Below 16 MiB nobody looks; the large one is noticed.
    let error = import(&store, &octets(1, 160 * PIECE)).expect_err("no disk has as much");
    assert!(matches!(error, StoreError::OverQuota { .. }), "{error}");
    assert!(files(&dir.path().join("nars")).is_empty());
}

#[test]
fn few_files_stay_open() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = StoreConfig { open_nars: 4, ..small(1 << 30) };
    let (_data, store) = open_with(dir.path(), config);
    for seed in 0..20 {
        import(&store, &octets(seed, 100)).expect("import");
    }
    let open =
        (0..20).filter(|&seed| store.inner.open_nars.get(&hash_of(&octets(seed, 100))).is_some());
    assert_eq!(open.count(), 4);
    for seed in 0..20 {
        let held = store.nar(&hash_of(&octets(seed, 100))).expect("open").expect("held");
        assert_eq!(read_all(&held), octets(seed, 100));
    }
}
