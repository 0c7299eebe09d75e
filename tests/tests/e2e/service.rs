//! A node as a service: what it tells the service manager, and that the files in `packaging/` are
//! what systemd and Guile take them for.

use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::program::{Finished, run};
use narswarm_tests::harness::samples::not_tested;
use narswarm_tests::harness::waiting::PATIENCE;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Nobody in particular, and not root.
const USER: u32 = 65_500;

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").canonicalize().expect("it is there")
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

async fn runs(program: &str, arguments: &[&Path]) -> Finished {
    run(Command::new(program).args(arguments)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_is_told_when_the_node_serves_and_when_it_ends() {
    let stage = Stage::new();
    let mirror = Mirror::create(stage.path("mirror"), 1);
    let socket = stage.path("notify");
    let manager = UnixDatagram::bind(&socket).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let hear = || {
        let mut octets = [0; 4096];
        let count = manager.recv(&mut octets).expect("something is said in time");
        String::from_utf8_lossy(&octets[..count]).into_owned()
    };
    let node = stage.node("a").acl(mirror.key_file()).env("NOTIFY_SOCKET", &socket).start().await;
    let ready = hear();
    assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
    let url = format!("http://{}", node.http());
    assert!(ready.contains("STATUS=") && ready.contains(&url), "{ready}");
    node.signal(Signal::HUP);
    let (ended, _) = node.terminate().await;
    assert!(ended.success());
    let stopping = hear();
    assert!(stopping.lines().any(|line| line == "STOPPING=1"), "{stopping}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_as_its_own_user() {
    if !rustix::process::geteuid().is_root() {
        return not_tested("only root can start a process as somebody else");
    }
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 2);
    let holding = mirror.add("hello", 300_000, &[Compression::Zstd]);
    stage.import("a", &mirror.key_file(), &[mirror.root()]).await.well();
    let root = stage.path("a");
    give_away(&root);
    // What the stage holds can be read by everybody, and changed by nobody but root.
    fs::set_permissions(root.parent().expect("the stage"), fs::Permissions::from_mode(0o755))
        .expect("our own");
    let node = stage.node("a").acl(mirror.key_file()).as_user(USER).start().await;
    Guix::new(node.http(), mirror.acl()).gets_all(std::slice::from_ref(&holding)).await;
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("it runs");
    let user = format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}\n");
    assert!(status.contains(&user), "{status}");
    let (ended, _) = node.terminate().await;
    assert!(ended.success());
}

fn give_away(path: &Path) {
    chown(path, Some(USER), Some(USER)).expect("root can");
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            give_away(&entry.expect("an entry").path());
        }
    }
}

#[tokio::test]
async fn systemd_takes_the_units_and_finds_them_safe() {
    if !is_there("systemd-analyze") {
        return not_tested("systemd-analyze isn't there (Debian's package is systemd)");
    }
    let stage = Stage::new();
    fs::create_dir_all(stage.path("unit")).expect("a directory");
    // How exposed they may be, of ten; an entry node's name can't be that of a user beforehand.
    for (name, most, must_say) in [
        ("narswarm", 2.0, "Type=notify\nUser=narswarm\n"),
        ("narswarm-bootstrap", 2.5, "DynamicUser=yes\n"),
    ] {
        let file = packaging().join(format!("systemd/{name}.service"));
        let text = fs::read_to_string(file).expect("the unit");
        assert!(text.contains(must_say), "{name}");
        // The program is not installed here.
        let unit = stage.path("unit").join(format!("{name}.service"));
        fs::write(&unit, text.replace(&format!("/usr/local/bin/{name}"), "/bin/true"))
            .expect("a file");
        let verified =
            runs("systemd-analyze", &[Path::new("verify"), Path::new("--man=no"), &unit]).await;
        assert_eq!((verified.code, verified.err.as_str()), (Some(0), ""), "{}", verified.out);
        let [security, offline] = ["security", "--offline=true"].map(Path::new);
        let judged = runs("systemd-analyze", &[security, offline, &unit]).await;
        let line = judged.out.lines().find(|line| line.contains("Overall exposure level"));
        let line = line.unwrap_or_else(|| panic!("no verdict: {}{}", judged.out, judged.err));
        let level = line.split_once(".service: ").and_then(|(_, rest)| rest.split(' ').next());
        let level: f64 = level.expect("a number").parse().expect("a number");
        assert!(level < most, "{line}");
    }
}

#[tokio::test]
async fn users_and_directories_are_declared_as_systemd_reads_them() {
    if !is_there("systemd-sysusers") {
        return not_tested("systemd-sysusers isn't there (Debian's package is systemd)");
    }
    let root = Stage::new();
    fs::create_dir_all(root.path("etc")).expect("a directory");
    let mut option = std::ffi::OsString::from("--root=");
    option.push(root.path("."));
    let made = runs(
        "systemd-sysusers",
        &[Path::new(&option), &packaging().join("systemd/narswarm.sysusers")],
    )
    .await;
    assert_eq!(made.code, Some(0), "{}", made.err);
    let users = fs::read_to_string(root.path("etc/passwd")).expect("users");
    assert!(users.lines().any(|line| line.starts_with("narswarm:")), "{users}");
    if !rustix::process::geteuid().is_root() {
        return not_tested("only root can give a directory to somebody else");
    }
    let file = packaging().join("systemd/narswarm.tmpfiles");
    let made = runs("systemd-tmpfiles", &[Path::new("--create"), Path::new(&option), &file]).await;
    assert_eq!(made.code, Some(0), "{}", made.err);
    let made = fs::metadata(root.path("var/lib/narswarm")).expect("the data directory");
    let owner = std::os::unix::fs::MetadataExt::uid(&made).to_string();
    let owns = |line: &str| line.starts_with("narswarm:") && line.split(':').nth(2) == Some(&owner);
    assert!(users.lines().any(owns), "{owner}: {users}");
    assert_eq!(made.permissions().mode() & 0o777, 0o750);
}

/// Reads all forms of a file, Guix's `#~` and `#$` among them, and demands that it defines the module
/// that its name says.
const READ: &str = r"
(use-modules (ice-9 match))
(for-each (lambda (char name)
            (read-hash-extend char
              (lambda (_ port)
                (when (eqv? #\@ (peek-char port)) (read-char port))
                (list name (read port)))))
          '(#\~ #\$ #\+) '(gexp ungexp ungexp-native))
(match (command-line)
  ((_ file name)
   (let ((forms (call-with-input-file file
                  (lambda (port)
                    (let loop ((forms '()))
                      (match (read port)
                        ((? eof-object?) (reverse forms))
                        (form (loop (cons form forms)))))))))
     (match forms
       ((('define-module module . _) _ . _)
        (unless (equal? module (call-with-input-string name read))
          (error file module)))
       ((('channel . _)) #t)))))
";

#[tokio::test]
async fn guile_reads_the_package_the_service_and_the_channel() {
    if !is_there("guile") {
        return not_tested("guile isn't there (Debian's package is guile-3.0)");
    }
    let guix = packaging().join("guix");
    for (file, module) in [
        (guix.join("narswarm/packages.scm"), "(narswarm packages)"),
        (guix.join("narswarm/services.scm"), "(narswarm services)"),
        (guix.join("../../.guix-channel"), "channel"),
    ] {
        let mut guile = Command::new("guile");
        guile.args(["--no-auto-compile", "-c", READ]).arg(&file).arg(module);
        let read = run(&mut guile).await;
        assert_eq!(read.code, Some(0), "{}: {}", file.display(), read.err);
    }
}
