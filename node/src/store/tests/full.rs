//! Full and read-only disks, on small file systems that only root can mount.

use super::*;
use std::process::Command;

/// A file system in memory, as long as this lives.
struct Mount(tempfile::TempDir);

impl Mount {
    /// `None`, loudly, where it can't be had; in CI that is a failure.
    fn new(megabytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().expect("tempdir");
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "narswarm-test"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(dir)),
            other => {
                assert!(std::env::var_os("CI").is_none(), "cannot mount a tmpfs: {other:?}");
                eprintln!("SKIPPED: cannot mount a tmpfs here (needs root): {other:?}");
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status = Command::new("mount").args(["-o", &options]).arg(self.0.path()).status();
        assert!(status.expect("mount").success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let Some(mount) = Mount::new(24) else { return };
    let (data, store) = open(mount.0.path());
    let mut kept = Vec::new();
    let nar = |seed| octets(seed, 3 * PIECE + 100);
    let error = loop {
        let seed = kept.len() as u64;
        match import(&store, &nar(seed)) {
            Ok(_) => kept.push(seed),
            Err(error) => break error,
        }
        put(&store, seed).expect("narinfos are small");
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.is_full());
    assert!(kept.len() > 10);
    assert!(files(&mount.0.path().join("partial")).is_empty());
    // Narinfos until nothing fits any more.
    let mut narinfos = Vec::new();
    let big = |number: u64| Bytes::from(octets(number, 100_000));
    let error = loop {
        let number = 1000 + narinfos.len() as u64;
        match store.put_narinfos(&[(item(number), NarHash([0; 32]), big(number))]) {
            Ok(()) => narinfos.push(number),
            Err(error) => break error,
        }
    };
    assert!(error.is_full(), "{error}");
    let all_there = |store: &Store| {
        for &seed in &kept {
            let held = store.nar(&hash_of(&nar(seed))).expect("open").expect("held");
            assert_eq!(read_all(&held), nar(seed));
            assert_narinfo(store, seed);
        }
        for &number in &narinfos {
            assert_eq!(store.narinfo(&item(number)).expect("read"), Some(big(number)));
        }
    };
    all_there(&store);
    // A fetch under way keeps what it has.
    let partial = store.begin(&hash_of(&nar(999)), layout_of(&nar(999))).expect("begin");
    let error = (0..4)
        .find_map(|index| {
            let piece = &nar(999)[index as usize * PIECE..];
            let piece = &piece[..piece.len().min(PIECE)];
            partial.write_piece(index, &encode_piece(piece)).err()
        })
        .expect("no room");
    assert!(error.is_full(), "{error}");
    partial.abandon();
    store.close();
    drop((partial, store, data));
    mount.remount("size=64m");
    let (_data, store) = open(mount.0.path());
    all_there(&store);
    import(&store, &nar(999)).expect("there is room again");
    put(&store, 5000).expect("there is room again");
}

#[test]
fn a_store_goes_on_once_there_is_room_again() {
    let Some(mount) = Mount::new(16) else { return };
    let (_data, store) = open(mount.0.path());
    let big = |number: u64| (item(number), NarHash([0; 32]), Bytes::from(octets(number, 100_000)));
    let full = (0..).find(|&number| store.put_narinfos(&[big(number)]).is_err()).expect("full");
    mount.remount("size=64m");
    let deadline = Instant::now() + REVIVAL_PAUSE * 4;
    while let Err(error) = store.put_narinfos(&[big(full)]) {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(50));
    }
    for number in 0..=full {
        assert_eq!(store.narinfo(&item(number)).expect("read"), Some(big(number).2));
    }
}

#[test]
fn a_read_only_disk_is_told_as_such() {
    let Some(mount) = Mount::new(16) else { return };
    let (data, store) = open(mount.0.path());
    let nar = octets(1, PIECE);
    import(&store, &nar).expect("import");
    put(&store, 1).expect("put");
    store.close();
    drop((store, data));
    mount.remount("ro");
    let refusal = DataDir::open(mount.0.path()).expect_err("read-only");
    assert!(matches!(refusal, DataDirError::NotWritable { .. }), "{refusal}");
    let missing = mount.0.path().join("new");
    let refusal = DataDir::open(&missing).expect_err("read-only");
    assert!(matches!(refusal, DataDirError::NotWritable { .. }), "{refusal}");
    mount.remount("rw");
    let (_data, store) = open(mount.0.path());
    assert_narinfo(&store, 1);
    assert_eq!(read_all(&store.nar(&hash_of(&nar)).expect("open").expect("held")), nar);
}
