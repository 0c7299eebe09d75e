//! A TCP proxy that delays and does not slow down: each octet leaves the proxy a fixed time after
//! it came, in both directions, at any rate.
//!
//! What a connection over a long line costs is modelled as well: the handshake's round trip is
//! added before the first octet. FIN and RST pass through, delayed like octets.

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// Octets that are read at once.
const READ_BYTES: usize = 64 * 1024;

/// Reads under way in one direction: 64 MiB, which at 25 ms is 2.6 GB/s, above what loopback gives.
const MAX_UNDER_WAY: usize = 1024;

/// A delayed way to a server, open for as long as this lasts.
#[derive(Debug)]
pub struct DelayProxy {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _accepting: AbortOnDropHandle<()>,
}

/// What travels.
enum Parcel {
    Octets(Bytes),
    Fin,
    Reset,
}

impl DelayProxy {
    /// Listens on a free loopback port and forwards to `server`, each way taking `one_way`: a
    /// round trip is twice that.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server: SocketAddr, one_way: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let accepting = tokio::spawn(async move {
            let mut carrying = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                carrying.spawn(carry(client, server, one_way));
                while carrying.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, connections, _accepting: AbortOnDropHandle::new(accepting) })
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

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// One connection. When this returns, both sockets close: with FINs long sent, or with RST.
async fn carry(client: TcpStream, server: SocketAddr, one_way: Duration) {
    // The client's kernel has finished its handshake with us; over the long line it would have
    // taken a round trip until the first octet could leave.
    let established = Instant::now() + 2 * one_way;
    let Ok(server) = TcpStream::connect(server).await else {
        reset(&client);
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_reader, client_writer) = client.into_split();
    let (server_reader, server_writer) = server.into_split();
    let ((there, there_end), (back, back_end)) =
        (mpsc::channel(MAX_UNDER_WAY), mpsc::channel(MAX_UNDER_WAY));
    let carried = async {
        tokio::try_join!(
            collect(client_reader, there, established, one_way),
            collect(server_reader, back, established, one_way),
            deliver(there_end, &server_writer),
            deliver(back_end, &client_writer),
        )
    };
    if carried.await.is_err() {
        for writer in [client_writer, server_writer] {
            reset(writer.as_ref());
            // Dropping it would send FIN first.
            writer.forget();
        }
    }
}

/// Makes closing send RST.
fn reset(stream: &TcpStream) {
    // A socket that is gone already needs no reset.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Reads what comes and notes when it is due.
async fn collect(
    mut reader: OwnedReadHalf,
    queue: mpsc::Sender<(Instant, Parcel)>,
    established: Instant,
    one_way: Duration,
) -> Result<(), ()> {
    loop {
        let mut octets = BytesMut::with_capacity(READ_BYTES);
        let parcel = match reader.read_buf(&mut octets).await {
            Ok(0) => Parcel::Fin,
            Ok(_) => Parcel::Octets(octets.freeze()),
            Err(_) => Parcel::Reset,
        };
        let is_last = !matches!(parcel, Parcel::Octets(_));
        let due = Instant::now().max(established) + one_way;
        if queue.send((due, parcel)).await.is_err() || is_last {
            return Ok(());
        }
    }
}

/// Writes what is due. An error means that the connection is to be reset.
async fn deliver(
    mut queue: mpsc::Receiver<(Instant, Parcel)>,
    writer: &OwnedWriteHalf,
) -> Result<(), ()> {
    while let Some((due, parcel)) = queue.recv().await {
        sleep_until(due).await;
        match parcel {
            Parcel::Octets(octets) => write_all(writer.as_ref(), &octets).await.map_err(drop)?,
            Parcel::Fin => {
                // The other direction goes on.
                return SockRef::from(writer.as_ref())
                    .shutdown(std::net::Shutdown::Write)
                    .map_err(drop);
            }
            Parcel::Reset => return Err(()),
        }
    }
    Ok(())
}

/// As `AsyncWriteExt::write_all`, on a shared socket.
async fn write_all(stream: &TcpStream, mut octets: &[u8]) -> io::Result<()> {
    while !octets.is_empty() {
        stream.writable().await?;
        match stream.try_write(octets) {
            Ok(written) => octets = &octets[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
