//! The real Nix: stores in directories of their own, which take `/nix/store` for their place, built
//! in, signed, and copied to and from.
//!
//! Nothing of the machine's own Nix is read or written. Where Nix isn't there, the tests that need it
//! say so loudly, and fail under continuous integration.

use super::program::Finished;
use super::samples::not_tested;
use super::waiting::PATIENCE;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Output;
use tokio::process::Command;

/// What the builders see of this machine: a shell, and what that needs.
const VISIBLE: &str = "/bin /lib /lib64 /usr";

/// Nix with its settings in one directory.
pub struct Nix {
    home: PathBuf,
    /// Where the store and what belongs to it are, if not at `/nix`.
    system: Option<PathBuf>,
}

impl Nix {
    /// Nix, if it is there; with a directory for its settings and caches.
    ///
    /// # Panics
    /// Under continuous integration, when it isn't there.
    #[must_use]
    pub fn find(home: PathBuf) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let has =
            |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
        if !(has("nix") && has("nix-store") && has("nix-build")) {
            not_tested("Nix isn't there (Debian's package is nix-bin)");
            return None;
        }
        std::fs::create_dir_all(home.join("conf")).expect("a new directory");
        Some(Self { home, system: None })
    }

    /// Nix on a system whose store is in this directory, both by name and really: what somebody finds
    /// who looks for the files by their names.
    #[must_use]
    pub fn on_system(mut self, dir: PathBuf) -> Self {
        self.system = Some(dir);
        self
    }

    /// The store's directory, by which its items are named.
    #[must_use]
    pub fn store_dir(&self) -> PathBuf {
        self.system.as_ref().map_or_else(|| "/nix/store".into(), |system| system.join("store"))
    }

    /// The store of the system itself.
    ///
    /// # Panics
    /// When that would be the machine's own.
    #[must_use]
    pub fn own_store(&self) -> NixStore<'_> {
        assert!(self.system.is_some(), "the machine's own store is left alone");
        NixStore { nix: self, root: None }
    }

    /// One of Nix's programs.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("HOME", &self.home).env("NIX_CONF_DIR", self.home.join("conf"));
        for variable in ["NIX_PATH", "NIX_REMOTE", "NIX_CONFIG", "NIX_USER_CONF_FILES"] {
            command.env_remove(variable);
        }
        if let Some(system) = &self.system {
            command.env("NIX_STORE_DIR", system.join("store"));
            command.env("NIX_STATE_DIR", system.join("var"));
            command.env("NIX_LOG_DIR", system.join("log"));
        }
        command.kill_on_drop(true);
        for (name, value) in [
            ("build-users-group", ""),
            // For the system's own store; any other is built in with one.
            ("sandbox", "false"),
            ("sandbox-paths", VISIBLE),
            ("experimental-features", "nix-command"),
            // A miss of now may be a hit in a moment.
            ("narinfo-cache-negative-ttl", "0"),
            ("narinfo-cache-positive-ttl", "0"),
            ("download-attempts", "1"),
        ] {
            command.args(["--option", name, value]);
        }
        command
    }

    /// Makes a key of this name; gives the files of its secret and its public half.
    pub async fn make_key(&self, name: &str) -> (PathBuf, PathBuf) {
        let (secret, public) =
            (self.home.join(format!("{name}.secret")), self.home.join(format!("{name}.public")));
        let mut command = self.command("nix-store");
        command.args(["--generate-binary-cache-key", name]).arg(&secret).arg(&public);
        run(&mut command).await.well();
        (secret, public)
    }

    /// A store in this directory.
    #[must_use]
    pub fn store(&self, root: PathBuf) -> NixStore<'_> {
        NixStore { nix: self, root: Some(root) }
    }
}

/// A store of its own.
pub struct NixStore<'a> {
    nix: &'a Nix,
    /// Below which directory everything is, if it isn't the system's own.
    root: Option<PathBuf>,
}

impl NixStore<'_> {
    /// One of the programs, at work on this store and asking nobody for substitutes.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.nix.command(program);
        command.arg("--store").arg(self.url()).args(["--option", "substitute", "false"]);
        command
    }

    /// One of the programs, which substitutes from there what these keys have signed.
    #[must_use]
    pub fn substituting(&self, program: &str, url: &str, keys: &str) -> Command {
        let mut command = self.nix.command(program);
        command.arg("--store").arg(self.url()).args(["--option", "substituters", url]);
        command.args(["--option", "trusted-public-keys", keys, "--option", "require-sigs", "true"]);
        // Nothing is to be built instead.
        command.args(["--option", "fallback", "false", "--option", "max-jobs", "0"]);
        command
    }

    /// Builds an expression; gives the path of what it evaluates to.
    pub async fn build(&self, expression: &str) -> String {
        let mut command = self.command("nix-build");
        command.args(["--no-out-link", "--expr", expression]);
        run(&mut command).await.well().trim().to_owned()
    }

    /// Signs a path and all that it refers to.
    pub async fn sign(&self, secret_key: &Path, path: &str) {
        let mut command = self.nix.command("nix");
        command.args(["store", "sign", "--recursive", "--store"]).arg(self.url());
        command.arg("--key-file").arg(secret_key).arg(path);
        run(&mut command).await.well();
    }

    /// Copies a path and all that it refers to into a binary cache.
    pub async fn copy_to_cache(&self, cache: &Path, compression: &str, path: &str) {
        let url = format!("file://{}?compression={compression}", cache.display());
        let mut command = self.nix.command("nix");
        command.arg("copy").arg("--from").arg(self.url()).args(["--to", &url, path]);
        command.arg("--no-check-sigs");
        run(&mut command).await.well();
    }

    /// `nix copy --from URL`, with signatures by these keys required.
    pub async fn copy_from(&self, url: &str, keys: &str, path: &str) -> Finished {
        let mut command = self.nix.command("nix");
        command.args(["copy", "--from", url, "--to"]).arg(self.url()).arg(path);
        command.args(["--option", "trusted-public-keys", keys, "--option", "require-sigs", "true"]);
        run(&mut command).await
    }

    /// `nix-store --realise`, with a substitute server and these keys.
    pub async fn realise(&self, url: &str, keys: &str, path: &str) -> Finished {
        run(self.substituting("nix-store", url, keys).args(["--realise", path])).await
    }

    /// Whether a path is valid here.
    pub async fn has(&self, path: &str) -> bool {
        let mut command = self.command("nix-store");
        run(command.args(["--check-validity", path])).await.code == Some(0)
    }

    /// The path and all that it refers to, in order.
    pub async fn closure(&self, path: &str) -> Vec<String> {
        let mut command = self.command("nix-store");
        let text = run(command.args(["--query", "--requisites", path])).await.well();
        let mut paths: Vec<_> = text.lines().map(str::to_owned).collect();
        paths.sort();
        paths
    }

    /// The nar of a path, as Nix makes it.
    pub async fn dump(&self, path: &str) -> Vec<u8> {
        let mut command = self.nix.command("nix-store");
        let output = output(command.arg("--dump").arg(self.file(path))).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Adds a file as what its content says; gives its path.
    pub async fn add_fixed(&self, file: &Path) -> String {
        let mut command = self.command("nix-store");
        let added = run(command.args(["--add-fixed", "sha256"]).arg(file)).await;
        added.well().trim().to_owned()
    }

    /// Has a path removed as the garbage collector does, but also while a process reads it, which
    /// that one would wait for.
    pub async fn collect(&self, path: &str) {
        let mut command = self.command("nix-store");
        run(command.args(["--delete", "--ignore-liveness", path])).await.well();
    }

    /// Where a path really lies.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        let item = path.rsplit_once('/').map_or(path, |(_, item)| item);
        match &self.root {
            Some(root) => root.join("nix/store").join(item),
            None => self.nix.store_dir().join(item),
        }
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        match (&self.root, &self.nix.system) {
            (Some(root), _) => root.join("nix/var/nix/db/db.sqlite"),
            (None, Some(system)) => system.join("var/db/db.sqlite"),
            (None, None) => panic!("the machine's own database is left alone"),
        }
    }

    /// As Nix is told which store it is.
    fn url(&self) -> OsString {
        self.root.as_ref().map_or_else(|| "local".into(), |root| root.into())
    }
}

async fn output(command: &mut Command) -> Output {
    let Ok(output) = tokio::time::timeout(PATIENCE, command.output()).await else {
        panic!("it doesn't end: {command:?}");
    };
    output.expect("Nix can be started")
}

/// Runs a command to its end.
pub async fn run(command: &mut Command) -> Finished {
    let Output { status, stdout, stderr } = output(command).await;
    let text = |octets: Vec<u8>| String::from_utf8_lossy(&octets).into_owned();
    Finished { code: status.code(), out: text(stdout), err: text(stderr) }
}
