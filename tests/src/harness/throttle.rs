//! A TCP proxy with a bounded rate, which can freeze, or end its connections: so that a transfer over the loopback lasts
//! long enough for something to happen in its middle.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// Octets that are passed on at once: small against a piece, so that the rate is smooth.
const CHUNK_BYTES: usize = 16 * 1024;

/// A slow way to a server, open for as long as this lasts.
pub struct Throttle {
    address: SocketAddr,
    line: Arc<Line>,
    _accepting: AbortOnDropHandle<()>,
}

struct Line {
    bytes_per_s: u64,
    frozen: watch::Sender<bool>,
    /// How often all connections were ended.
    cuts: watch::Sender<u32>,
    /// Octets that came from the server.
    from_server: AtomicU64,
}

impl Throttle {
    /// Listens on a free loopback port and forwards to `server`; each direction of each
    /// connection passes `bytes_per_s`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server: SocketAddr, bytes_per_s: u64) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let frozen = watch::Sender::new(false);
        let (cuts, from_server) = (watch::Sender::new(0), AtomicU64::new(0));
        let line = Arc::new(Line { bytes_per_s, frozen, cuts, from_server });
        let shared = line.clone();
        let accepting = tokio::spawn(async move {
            let mut carrying = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                carrying.spawn(carry(client, server, shared.clone()));
                while carrying.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, line, _accepting: AbortOnDropHandle::new(accepting) })
    }

    /// In front of a node's peers: returns also the address, with the peer id, by which they
    /// reach it through here.
    ///
    /// # Errors
    /// When no port can be had.
    ///
    /// # Panics
    /// When the address isn't one of TCP over IPv4.
    pub async fn before_peer(address: &str, bytes_per_s: u64) -> io::Result<(Self, String)> {
        let parts: Vec<_> = address.split('/').collect();
        let ["", "ip4", ip, "tcp", port, "p2p", peer] = parts[..] else { panic!("{address}") };
        let server = format!("{ip}:{port}").parse().expect("an address");
        let throttle = Self::start(server, bytes_per_s).await?;
        let port = throttle.address.port();
        Ok((throttle, format!("/ip4/127.0.0.1/tcp/{port}/p2p/{peer}")))
    }

    /// `http://` and the address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Octets that came from the server so far.
    #[must_use]
    pub fn from_server(&self) -> u64 {
        self.line.from_server.load(Ordering::Relaxed)
    }

    /// Passes nothing on any more, with all connections open.
    pub fn freeze(&self) {
        self.line.frozen.send_replace(true);
    }

    /// Ends all connections, and takes new ones.
    pub fn cut(&self) {
        self.line.cuts.send_modify(|cuts| *cuts += 1);
    }
}

/// One connection, until either side ends it.
async fn carry(client: TcpStream, server: SocketAddr, line: Arc<Line>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let nobody = AtomicU64::new(0);
    let mut cuts = line.cuts.subscribe();
    let (up, down) = (
        pass(from_client, to_server, &line, &nobody),
        pass(from_server, to_client, &line, &line.from_server),
    );
    tokio::pin!(up, down);
    tokio::select! {
        Err(_) = &mut up => {}
        Err(_) = &mut down => {}
        Ok(()) = cuts.changed() => {}
        else => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    line: &Line,
    passed: &AtomicU64,
) -> io::Result<()> {
    let mut frozen = line.frozen.subscribe();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut due = Instant::now();
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let thawed = frozen.wait_for(|frozen| !frozen).await;
        thawed.map_err(|_| io::ErrorKind::ConnectionAborted)?;
        to.write_all(&buffer[..read]).await?;
        passed.fetch_add(read as u64, Ordering::Relaxed);
        let cost = Duration::from_secs_f64(read as f64 / line.bytes_per_s as f64);
        due = due.max(Instant::now()) + cost;
        sleep_until(due).await;
    }
}
