//! One network namespace, and ways to do things in it: from this process or from another.
//!
//! It is held by a process that does nothing but wait for the end of its input, which is a pipe
//! from here. When this process is gone, so is that one, and the kernel removes the namespace with
//! all that was in it.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use tokio::sync::oneshot;

/// A network namespace; it lasts as long as its last clone and the last process in it.
#[derive(Debug, Clone)]
pub struct Namespace {
    holder: Arc<Holder>,
}

#[derive(Debug)]
struct Holder {
    child: Child,
    file: File,
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends by itself when its input does; that it has ended already is as well.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

impl Namespace {
    /// A new one, with nothing in it but a loopback that is down.
    ///
    /// # Panics
    /// Without the right to make one; see [`super::needs`].
    #[must_use]
    pub fn create() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        // Ctrl-C at a terminal is for whoever started us; this one goes when we do.
        let mut child = command.process_group(0).spawn().expect("unshare can be started");
        // When the first octet has come back, it is in its new namespace.
        let (stdin, stdout) = (child.stdin.as_mut(), child.stdout.as_mut());
        let written = stdin.expect("a pipe").write_all(b"\n");
        let mut echo = [0];
        let read = stdout.expect("a pipe").read_exact(&mut echo);
        assert!(written.is_ok() && read.is_ok(), "no namespace can be made; is this root?");
        let file = File::open(format!("/proc/{}/ns/net", child.id())).expect("our own process");
        Self { holder: Arc::new(Holder { child, file }) }
    }

    /// Its number among all of this machine, which no two have at the same time.
    ///
    /// # Panics
    /// Never: its file is open.
    #[must_use]
    pub fn id(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.holder.file.metadata().expect("an open file").ino()
    }

    /// A process in it, by whose number `ip` finds it.
    #[must_use]
    pub fn holder(&self) -> u32 {
        self.holder.child.id()
    }

    /// Moves the calling thread into it, for good.
    ///
    /// # Panics
    /// Without the right to.
    pub fn move_in(&self) {
        let moved =
            move_into_link_name_space(self.holder.file.as_fd(), Some(LinkNameSpaceType::Network));
        moved.expect("whoever made a namespace may enter it");
    }

    /// Does something in it, on a thread of its own. Sockets made there belong to it for ever.
    ///
    /// # Panics
    /// When `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.move_in();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Connects from it.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        let (sender, receiver) = oneshot::channel();
        let namespace = self.clone();
        // Not one of tokio's threads: it couldn't come back.
        thread::spawn(move || {
            namespace.move_in();
            // Whoever asked may be gone.
            let _ = sender.send(TcpStream::connect(address));
        });
        let stream = receiver.await.map_err(io::Error::other)??;
        stream.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(stream)
    }

    /// Listens in it.
    ///
    /// # Errors
    /// When the address can't be had.
    pub fn listen(&self, address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
        let listener = self.enter(|| TcpListener::bind(address))?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    }

    /// Tasks on threads in it, for programs that make their sockets themselves.
    ///
    /// # Panics
    /// When the system has no threads left.
    #[must_use]
    pub fn runtime(&self) -> Runtime {
        let namespace = self.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start(move || namespace.move_in())
            .build();
        Runtime { runtime: Some(runtime.expect("threads")) }
    }

    /// A program in it, which is killed when whoever starts it ends, however that ends.
    ///
    /// Start it on a thread that lives at least as long: it goes with the thread.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "nsenter"]);
        command.arg(format!("--net=/proc/{}/ns/net", self.holder())).arg("--").arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// The same program with the same arguments and environment, in it. All replace themselves, so
    /// the process has the number of the program.
    #[must_use]
    pub fn inside(&self, command: &tokio::process::Command) -> tokio::process::Command {
        let command = command.as_std();
        let mut inside = self.command(command.get_program());
        inside.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        let mut inside = tokio::process::Command::from(inside);
        inside.kill_on_drop(true);
        inside
    }

    /// Runs a program in it to its end, which must be a good one, with lines of input.
    ///
    /// # Panics
    /// When it isn't there or fails.
    pub fn run(&self, program: &str, arguments: &[&str], input: &str) {
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).expect("it reads all");
        drop(stdin);
        let output = child.wait_with_output().expect("our own process");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?} failed: {said}\n{input}");
    }

    /// Sets a value below `/proc/sys/net`.
    ///
    /// # Panics
    /// When there is no such value.
    pub fn set(&self, name: &str, value: &str) {
        let file = format!("/proc/sys/net/{name}");
        let written = self.enter(|| std::fs::write(&file, value));
        written.unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

/// Threads in a namespace.
#[derive(Debug)]
pub struct Runtime {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Runtime {
    /// Runs a task to its end.
    ///
    /// # Panics
    /// When the task does.
    pub async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let runtime = self.runtime.as_ref().expect("it is there until this is dropped");
        match runtime.spawn(task).await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => panic!("{error}"),
            },
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // To wait for its threads is not allowed on a thread of another.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
