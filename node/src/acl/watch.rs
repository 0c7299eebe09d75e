//! Notices that the files with the keys have changed, so that a key which is taken out is believed
//! no longer.
//!
//! The system tells of changes in the directories of the files, and of those that symbolic links
//! lead through. Since some file systems tell nothing, the files are also looked at every half
//! minute; and whenever somebody asks (SIGHUP). What can't be read or used changes nothing: the last
//! good keys stay, and whoever is told has to say so loudly.

use super::{AclFileError, AclFiles, LoadedAcl, Reading};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, warn};

/// How long changes are gathered: editors and package managers write a file in several steps.
const SETTLE: Duration = Duration::from_millis(100);

/// How often the files are looked at without having been told of a change: they are small, and a
/// key that was taken out in haste must not last.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Links that are followed from one file, as many as Linux follows.
const MAX_LINKS: usize = 40;

/// How often the files are read at a time because what they include has changed: then the new ones
/// are watched before they count.
const TRIES: usize = 3;

/// Asks for the files to be read anew, whether they have changed or not.
#[derive(Debug, Clone, Default)]
pub struct Reload(Arc<Notify>);

impl Reload {
    /// Asks.
    pub fn ask(&self) {
        self.0.notify_one();
    }
}

/// What the files held when they were last read; `None` for what can't be read.
type Seen = Vec<Option<Vec<u8>>>;

/// Watches the files for as long as it is polled, and tells of everything that isn't as it was, from
/// the moment that they were first loaded.
pub async fn watch(
    files: AclFiles,
    reload: Reload,
    mut tell: impl FnMut(Result<LoadedAcl, AclFileError>),
) {
    let changed = Arc::new(Notify::new());
    let mut seen: Option<Seen> = None;
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watching = None;
    let mut paths: BTreeSet<PathBuf> = files.paths().iter().cloned().collect();
    loop {
        let is_asked = tokio::select! {
            () = reload.0.notified() => true,
            () = changed.notified() => {
                sleep(SETTLE).await;
                false
            }
            _ = ticks.tick() => false,
        };
        let (reader, signal) = (files.clone(), changed.clone());
        let before = paths.clone();
        let looked = tokio::task::spawn_blocking(move || look(&reader, before, &signal));
        let Ok((now_watching, readings, now_paths)) = looked.await else { continue };
        watching = keep(watching, now_watching);
        paths = now_paths;
        let now: Seen = readings.iter().map(|read| read.text.as_ref().ok().cloned()).collect();
        // What was loaded at the start may have changed since, so the first look tells as well.
        if seen.as_ref() != Some(&now) || is_asked {
            seen = Some(now);
            tell(files.understand(readings));
        }
    }
}

/// Watches and reads the files, with what they include as far as that is known from `before`.
fn look(
    files: &AclFiles,
    before: BTreeSet<PathBuf>,
    signal: &Arc<Notify>,
) -> (Option<Watching>, Vec<Reading>, BTreeSet<PathBuf>) {
    let (mut paths, mut tries) = (before, TRIES);
    loop {
        tries -= 1;
        // Before reading, so that no change falls between. Links may lead elsewhere by now.
        let watching = Watching::begin(&paths, signal);
        let readings = files.read();
        let named = files.paths().iter().cloned();
        let included = readings.iter().flat_map(|reading| reading.included.iter().cloned());
        let now: BTreeSet<_> = named.chain(included).collect();
        if now.is_subset(&paths) || tries == 0 {
            return (watching, readings, now);
        }
        paths = now;
    }
}

/// The directories that are watched now.
struct Watching {
    places: BTreeSet<(PathBuf, OsString)>,
    /// Watches until it is dropped.
    _watcher: RecommendedWatcher,
}

/// Stays with the old one if it watches the same places.
fn keep(old: Option<Watching>, new: Option<Watching>) -> Option<Watching> {
    match (old, new) {
        (Some(old), Some(new)) if old.places == new.places => Some(old),
        (old, new) => new.or(old),
    }
}

impl Watching {
    fn begin(files: &BTreeSet<PathBuf>, changed: &Arc<Notify>) -> Option<Self> {
        let places: BTreeSet<_> = files.iter().flat_map(|file| places(file)).collect();
        let names: BTreeSet<_> = places.iter().map(|(_, name)| name.clone()).collect();
        let signal = changed.clone();
        let hear = move |event: notify::Result<notify::Event>| {
            let concerns = event.is_ok_and(|event| {
                let named =
                    |path: &PathBuf| path.file_name().is_some_and(|name| names.contains(name));
                !event.kind.is_access() && event.paths.iter().any(named)
            });
            if concerns {
                signal.notify_one();
            }
        };
        let mut watcher = match notify::recommended_watcher(hear) {
            Ok(watcher) => watcher,
            Err(error) => {
                warn!("changes of the keys are noticed late, after half a minute: {error}");
                return None;
            }
        };
        let folders: BTreeSet<_> = places.iter().map(|(folder, _)| folder).collect();
        for folder in folders {
            if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                debug!("changes in {} are noticed late: {error}", folder.display());
            }
        }
        Some(Self { places, _watcher: watcher })
    }
}

/// Directory and name of a file, and of every link on the way to it.
fn places(file: &Path) -> Vec<(PathBuf, OsString)> {
    let mut found = Vec::new();
    let mut next = std::path::absolute(file).ok();
    while let Some(path) = next.take().filter(|_| found.len() < MAX_LINKS) {
        // Any part of the path may be a link that is replaced, as /etc/static is.
        for part in path.ancestors().skip(1) {
            let (Some(folder), Some(name)) = (part.parent(), part.file_name()) else { continue };
            if part.is_symlink() {
                found.push((real(folder), name.to_owned()));
            }
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { break };
        found.push((real(folder), name.to_owned()));
        next = std::fs::read_link(&path).ok().map(|target| folder.join(target));
    }
    found
}

/// Where a directory is now, wherever links may lead later: that is what gets watched.
fn real(folder: &Path) -> PathBuf {
    folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Dialect;
    use narswarm_protocol::acl::NixSigningKey;
    use std::fs;
    use std::os::unix::fs::symlink;
    use tokio::sync::mpsc;
    use tokio::time::timeout;

    fn key(seed: u8) -> String {
        let key = NixSigningKey::from_seed(&format!("k-{seed}"), [seed; 32]).expect("a name");
        key.public_key().to_string()
    }

    struct Watched {
        told: mpsc::UnboundedReceiver<Result<usize, String>>,
        reload: Reload,
        task: tokio::task::JoinHandle<()>,
    }

    impl Watched {
        fn begin(file: &Path) -> Self {
            let (say, told) = mpsc::unbounded_channel();
            let (files, reload) =
                (AclFiles::new(vec![file.to_owned()], Dialect::Guix), Reload::default());
            let task = tokio::spawn(watch(files, reload.clone(), move |result| {
                let result = result.map(|l| l.acl.len()).map_err(|error| error.to_string());
                let _ = say.send(result);
            }));
            Self { told, reload, task }
        }

        /// What it tells next, well before it would have looked by itself.
        async fn next(&mut self) -> Result<usize, String> {
            let told = timeout(LOOK_EVERY / 2, self.told.recv()).await;
            told.expect("a change is noticed").expect("it watches on")
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    #[tokio::test]
    async fn changes_are_noticed_however_the_file_is_written() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("keys");
        fs::write(&file, key(1)).expect("file");
        let mut watched = Watched::begin(&file);
        assert_eq!(watched.next().await, Ok(1));
        fs::write(&file, format!("{}\n{}", key(1), key(2))).expect("file");
        assert_eq!(watched.next().await, Ok(2));
        let new = folder.path().join("new");
        fs::write(&new, key(3)).expect("file");
        fs::rename(&new, &file).expect("renamed");
        assert_eq!(watched.next().await, Ok(1));
        fs::remove_file(&file).expect("removed");
        assert!(watched.next().await.expect_err("gone").contains("keys"));
        fs::write(&file, "hello").expect("file");
        assert!(watched.next().await.is_err());
        watched.reload.ask();
        assert!(watched.next().await.is_err(), "asked for, it is told again");
        fs::write(&file, key(3)).expect("file");
        assert_eq!(watched.next().await, Ok(1));
    }

    #[tokio::test]
    async fn what_is_included_is_watched_from_when_it_is() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("sub")).expect("directory");
        let set = |keys: &[String]| format!("trusted-public-keys = {}\n", keys.join(" "));
        fs::write(path("nix.conf"), format!("{}!include sub/more.conf\n", set(&[key(1)])))
            .expect("file");
        let mut watched = Watched::begin(&path("nix.conf"));
        assert_eq!(watched.next().await, Ok(1));
        // It wasn't there.
        let extra = format!("extra-{}include other.conf\n", set(&[key(2)]));
        fs::write(path("sub/other.conf"), "").expect("file");
        fs::write(path("sub/more.conf"), extra).expect("file");
        assert_eq!(watched.next().await, Ok(2));
        // It wasn't included.
        fs::write(path("sub/other.conf"), set(&[key(3), key(4), key(5)])).expect("file");
        assert_eq!(watched.next().await, Ok(3));
        fs::remove_file(path("sub/other.conf")).expect("removed");
        assert!(watched.next().await.expect_err("it must be there").contains("other.conf"));
        fs::write(path("nix.conf"), set(&[key(1)])).expect("file");
        assert_eq!(watched.next().await, Ok(1));
    }

    #[tokio::test]
    async fn a_link_may_be_replaced_anywhere_on_the_way() {
        let folder = tempfile::tempdir().expect("folder");
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        for (dir, count) in [(&old, 1), (&new, 2)] {
            fs::create_dir(dir).expect("directory");
            let keys: Vec<_> = (1..=count).map(key).collect();
            fs::write(dir.join("keys"), keys.join("\n")).expect("file");
        }
        let current = folder.path().join("current");
        symlink(&old, &current).expect("link");
        let link = folder.path().join("keys");
        symlink("current/keys", &link).expect("link");
        let mut watched = Watched::begin(&link);
        assert_eq!(watched.next().await, Ok(1));
        let other = folder.path().join("other");
        symlink(&new, &other).expect("link");
        fs::rename(&other, &current).expect("renamed");
        assert_eq!(watched.next().await, Ok(2));
        // Where it leads now is watched.
        fs::write(new.join("keys"), key(1)).expect("file");
        assert_eq!(watched.next().await, Ok(1));
    }
}
