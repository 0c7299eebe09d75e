//! A BitTorrent tracker (BEP 3, with the compact lists of BEP 23): tells everybody who asks about
//! everybody who has asked. It has one torrent, whatever is asked for.

use super::namespace::Namespace;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// Its port, the usual one.
const PORT: u16 = 6969;

/// Longest request: clients send a few hundred octets.
const MAX_REQUEST_BYTES: usize = 8192;

/// Who is in the swarm.
type Peers = Arc<Mutex<BTreeSet<(Ipv4Addr, u16)>>>;

/// A running one.
pub struct Tracker {
    url: String,
    peers: Peers,
    _accepting: AbortOnDropHandle<()>,
}

impl Tracker {
    /// Starts one in a host with this address.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(namespace: &Namespace, address: Ipv4Addr) -> std::io::Result<Self> {
        let listener = namespace.listen(SocketAddr::from((address, PORT)))?;
        let peers = Peers::default();
        let known = peers.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                tokio::spawn(answer(stream, from.ip(), known.clone()));
            }
        });
        let url = format!("http://{address}:{PORT}/announce");
        Ok(Self { url, peers, _accepting: AbortOnDropHandle::new(accepting) })
    }

    /// Where clients announce themselves.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many have announced themselves.
    #[must_use]
    pub fn known(&self) -> usize {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

async fn answer(mut stream: TcpStream, from: IpAddr, peers: Peers) {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read_buf(&mut request).await;
        if request.len() > MAX_REQUEST_BYTES || !matches!(read, Ok(1..)) {
            return;
        }
    }
    let (IpAddr::V4(ip), Some(port)) = (from, port(&String::from_utf8_lossy(&request))) else {
        return;
    };
    let others = {
        let mut peers = peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.insert((ip, port));
        peers.iter().copied().filter(|peer| *peer != (ip, port)).collect::<Vec<_>>()
    };
    let body = announced(&others);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    // Whoever asked may be gone.
    let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
}

/// The `port=` of an announcement.
fn port(request: &str) -> Option<u16> {
    let query = request.split(' ').nth(1)?.split_once('?')?.1;
    query.split('&').find_map(|pair| pair.strip_prefix("port=")?.parse().ok())
}

/// The answer: ask again in half an hour, and these are the others.
fn announced(peers: &[(Ipv4Addr, u16)]) -> Vec<u8> {
    let mut body = format!("d8:intervali1800e5:peers{}:", peers.len() * 6).into_bytes();
    for (ip, port) in peers {
        body.extend(ip.octets());
        body.extend(port.to_be_bytes());
    }
    body.push(b'e');
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_read_and_answered() {
        let request = "GET /announce?info_hash=%00a&peer_id=x&port=6881&event=started HTTP/1.1\r\n";
        assert_eq!(port(request), Some(6881));
        assert_eq!(port("GET /announce?port=x HTTP/1.1\r\n"), None);
        let body = announced(&[(Ipv4Addr::new(10, 99, 0, 1), 0x0102)]);
        assert_eq!(body, b"d8:intervali1800e5:peers6:\x0a\x63\x00\x01\x01\x02e");
        assert_eq!(announced(&[]), b"d8:intervali1800e5:peers0:e");
    }
}
