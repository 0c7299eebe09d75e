//! nginx as the reference for serving files: the distribution's program, one process, a
//! configuration of our own, on a free loopback port.

use anyhow::{Context, bail};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// Longest time until it listens.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is asked whether it listens.
const INTERVAL: Duration = Duration::from_millis(5);

/// A running nginx; killed when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    address: SocketAddr,
}

impl Nginx {
    /// Serves the files below `root`; `scratch` is a new directory for its own files.
    ///
    /// # Errors
    /// When there is no nginx, or it doesn't start.
    pub async fn start(root: &Path, scratch: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(scratch)?;
        // It cannot be told to take any free port, so one is found for it.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let file = scratch.join("nginx.conf");
        fs::write(&file, configuration(root, scratch, address))?;
        let mut command = Command::new(program());
        command.arg("-p").arg(scratch).arg("-c").arg(&file).args(["-e", "stderr"]);
        let errors = fs::File::create(scratch.join("errors.log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .context("nginx is the reference of this benchmark, and it can't be started")?;
        let mut nginx = Self { child, address };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).await.is_err() {
            let is_over = Instant::now() > deadline;
            if is_over || nginx.child.try_wait()?.is_some() {
                let errors = fs::read_to_string(scratch.join("errors.log")).unwrap_or_default();
                bail!("nginx doesn't listen: {errors}");
            }
            sleep(INTERVAL).await;
        }
        Ok(nginx)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://` and the address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The process.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs until this is dropped")
    }
}

/// Distributions put it where only root's search path leads.
fn program() -> &'static str {
    let usual = "/usr/sbin/nginx";
    if Path::new(usual).exists() { usual } else { "nginx" }
}

/// What a mirror's operator would write, but for the number of requests on a connection, which is
/// 1,000 by default and would make guix reconnect.
fn configuration(root: &Path, scratch: &Path, address: SocketAddr) -> String {
    let (root, scratch) = (root.display(), scratch.display());
    format!(
        "daemon off;
master_process off;
pid {scratch}/pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_requests 1000000;
    client_body_temp_path {scratch}/body;
    proxy_temp_path {scratch}/proxy;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    types {{ text/x-nix-narinfo narinfo; }}
    default_type application/octet-stream;
    server {{
        listen {address};
        root \"{root}\";
    }}
}}
"
    )
}
