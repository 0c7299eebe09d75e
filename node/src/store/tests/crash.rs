//! A process that writes and acknowledges is killed at random instants; what it has acknowledged
//! must be there.
//!
//! The process is this very test in another copy of the test program, told by the environment
//! where to write.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

const DIR: &str = "NARSWARM_TEST_CRASH_DIR";
const ROUND: &str = "NARSWARM_TEST_CRASH_ROUND";
const NAME: &str = "store::tests::crash::what_is_acknowledged_survives_a_kill";

/// Enough that the kills have met every kind of write in every run so far.
const ROUNDS: u64 = 30;

fn nar(number: u64) -> Vec<u8> {
    // Most are small, some have ten pieces.
    let pieces = if number.is_multiple_of(7) { 10 } else { 0 };
    octets(number, pieces * PIECE + number as usize % 5000 + 100)
}

/// Writes until it is killed.
fn write_forever(dir: &Path, round: u64) -> ! {
    let (_data, store) = open(dir);
    std::thread::scope(|scope| {
        let narinfos = || {
            for step in 0.. {
                let first = round * 1_000_000 + step * 10;
                let batch: Vec<_> = (first..first + 1 + step % 5)
                    .map(|number| (item(number), NarHash([1; 32]), narinfo(number)))
                    .collect();
                store.put_narinfos(&batch).expect("put");
                for number in first..first + batch.len() as u64 {
                    acknowledge("narinfo", number);
                }
            }
        };
        let nars = || {
            for number in round * 1_000_000.. {
                import(&store, &nar(number)).expect("import");
                acknowledge("nar", number);
            }
        };
        scope.spawn(narinfos);
        scope.spawn(nars);
    });
    unreachable!("both go on for ever")
}

fn acknowledge(kind: &str, number: u64) {
    let mut out = std::io::stdout().lock();
    // The parent may be gone.
    let told = writeln!(out, "ack {kind} {number}").and_then(|()| out.flush());
    if told.is_err() {
        std::process::exit(1);
    }
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a writer, kills it after it has acknowledged `patience` times, and returns what it has
/// acknowledged by then.
fn run_and_kill(dir: &Path, round: u64, patience: usize) -> Vec<(String, u64)> {
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", NAME, "--nocapture"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut child = KilledOnDrop(child);
    let stdout = child.0.stdout.take().expect("piped");
    let mut acknowledged = Vec::new();
    let mut killed = false;
    for line in BufReader::new(stdout).lines() {
        let line = line.expect("text");
        let Some(rest) = line.split("ack ").nth(1) else { continue };
        // The kill may cut a line short; a cut number would be another number.
        if let Some((kind, number)) = rest.split_once(' ') {
            acknowledged.push((kind.to_owned(), number.parse::<u64>().expect("number")));
        }
        if acknowledged.len() >= patience && !killed {
            child.0.kill().expect("kill");
            killed = true;
        }
    }
    assert!(killed, "the writer ended by itself in round {round}");
    acknowledged
}

#[test]
fn what_is_acknowledged_survives_a_kill() {
    if let (Ok(dir), Ok(round)) = (std::env::var(DIR), std::env::var(ROUND)) {
        write_forever(Path::new(&dir), round.parse().expect("number"));
    }
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let dir = tempfile::tempdir().expect("tempdir");
    let mut acknowledged: Vec<(String, u64)> = Vec::new();
    for round in 0..ROUNDS {
        let chance = blake3::hash(&[seed.to_le_bytes(), round.to_le_bytes()].concat());
        let chance = u64::from_le_bytes(*chance.as_bytes().first_chunk().expect("eight"));
        let patience = 1 + (chance % 60) as usize;
        let fresh = run_and_kill(dir.path(), round, patience);
        acknowledged.extend(fresh);
        if chance % 5 == 0 {
            std::fs::remove_dir_all(dir.path().join("index")).expect("remove");
        }
        check(dir.path(), &acknowledged, chance % 3 == 0, seed, round);
    }
    let nars = acknowledged.iter().filter(|(kind, _)| kind == "nar").count();
    println!("{} acknowledged, {nars} of them nars", acknowledged.len());
    assert!(nars > 0 && nars < acknowledged.len());
}

fn check(dir: &Path, acknowledged: &[(String, u64)], close: bool, seed: u64, round: u64) {
    let (_data, store) = open(dir);
    let (mut narinfos, mut nars) = (0, 0);
    for (kind, number) in acknowledged {
        if kind == "narinfo" {
            let found = store.narinfo(&item(*number)).expect("read");
            assert_eq!(found, Some(narinfo(*number)), "{number}, seed {seed}, round {round}");
            narinfos += 1;
        } else {
            let held = store.nar(&hash_of(&nar(*number))).expect("open");
            let held = held.unwrap_or_else(|| panic!("{number}, seed {seed}, round {round}"));
            assert_eq!(read_all(&held), nar(*number));
            nars += 1;
        }
    }
    let stats = store.stats();
    assert!(stats.narinfos >= narinfos && stats.cached >= nars, "{stats:?}");
    // The counts are right, and there is no file that nobody knows of.
    let counted = store.inner.with_index(|index| index.recount()).expect("recount");
    assert_eq!(counted.nars, stats.cached, "seed {seed}, round {round}");
    assert_eq!(counted.narinfos, stats.narinfos, "seed {seed}, round {round}");
    let mut files = files(&dir.join("nars"));
    files.retain(|path| path.extension().is_some_and(|extension| extension == "zst"));
    assert_eq!(files.len() as u64, stats.cached, "seed {seed}, round {round}");
    let lens = files.iter().map(|path| std::fs::metadata(path).expect("metadata").len());
    assert_eq!(lens.sum::<u64>(), stats.cached_bytes, "seed {seed}, round {round}");
    if close {
        store.close();
    }
}
