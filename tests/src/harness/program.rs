//! The programs under test: `narswarm` and `narswarm-bootstrap`, in the directory where cargo puts
//! what it builds beside the running test.
//!
//! Cargo builds a package's tests without the binaries of other packages. So when a program is
//! missing or older than its sources, it is built here, once, under a lock. `NARSWARM_BIN` and
//! `NARSWARM_BOOTSTRAP_BIN` name other programs to be tested as they are.

use super::waiting::PATIENCE;
use rustix::fs::{FlockOperation, flock};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

/// The node's file.
///
/// # Panics
/// When it can't be built.
pub fn narswarm() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let built = || built("narswarm");
    FILE.get_or_init(|| std::env::var_os("NARSWARM_BIN").map_or_else(built, PathBuf::from))
}

/// The entry node's file.
///
/// # Panics
/// When it can't be built.
pub fn bootstrap() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let built = || built("narswarm-bootstrap");
    let named = || std::env::var_os("NARSWARM_BOOTSTRAP_BIN");
    FILE.get_or_init(|| named().map_or_else(built, PathBuf::from))
}

fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test is a file");
    // target/PROFILE/deps/TEST or target/PROFILE/BENCHMARK
    let folder = test.parent().expect("cargo's directories");
    let is_deps = folder.file_name() == Some(OsStr::new("deps"));
    let folder = folder.parent().filter(|_| is_deps).unwrap_or(folder).to_owned();
    let program = folder.join(name);
    let lock = File::create(folder.join(".narswarm-test.lock")).expect("a file beside the program");
    flock(&lock, FlockOperation::LockExclusive).expect("a lock");
    if !is_current(&program) {
        build(name, &folder);
    }
    program
}

/// Whether the program is there and newer than its sources, which cargo lists beside it: `PROGRAM:
/// SOURCE SOURCE…`, with spaces within names escaped.
fn is_current(program: &Path) -> bool {
    let Ok(listed) = fs::read_to_string(program.with_extension("d")) else { return false };
    let sources = listed.split_once(": ").map_or("", |(_, sources)| sources.trim_end());
    let sources = sources.replace("\\ ", "\0");
    let mut sources =
        sources.split(' ').map(|source| modified(Path::new(&source.replace('\0', " "))));
    let built = modified(program);
    built.is_some() && sources.all(|source| source.is_some() && source <= built)
}

fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|data| data.modified()).ok()
}

fn build(name: &str, folder: &Path) {
    let profile = match folder.file_name().and_then(OsStr::to_str) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => panic!("{} is no directory of cargo's", folder.display()),
    };
    let target = folder.parent().expect("cargo's directories");
    // The whole workspace, so that nothing is built with other features than it was before.
    let status = std::process::Command::new(option_env!("CARGO").unwrap_or("cargo"))
        .args(["build", "--workspace", "--bin", name, "--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "the program under test can't be built");
}

/// A subcommand of the node with nothing of the tester's own configuration.
#[must_use]
pub fn command(subcommand: &str) -> tokio::process::Command {
    of(narswarm(), subcommand)
}

/// The same of the entry node.
#[must_use]
pub fn bootstrap_command(subcommand: &str) -> tokio::process::Command {
    of(bootstrap(), subcommand)
}

fn of(program: &Path, subcommand: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("NARSWARM_")) {
            command.env_remove(name);
        }
    }
    command.arg(subcommand).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What a finished program has left.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it complained about.
    pub err: String,
}

/// Runs a command to its end.
///
/// # Panics
/// When it can't be started or doesn't end.
pub async fn run(command: &mut tokio::process::Command) -> Finished {
    let Ok(output) = tokio::time::timeout(PATIENCE, command.output()).await else {
        panic!("it doesn't end: {command:?}");
    };
    let Output { status, stdout, stderr } = output.expect("the program can be started");
    let text = |octets: Vec<u8>| String::from_utf8_lossy(&octets).into_owned();
    Finished { code: status.code(), out: text(stdout), err: text(stderr) }
}

impl Finished {
    /// Demands that all went well; gives what was printed.
    ///
    /// # Panics
    /// When it didn't.
    #[track_caller]
    pub fn well(self) -> String {
        assert_eq!(self.code, Some(0), "failed: {}\n{}", self.err, self.out);
        self.out
    }
}
