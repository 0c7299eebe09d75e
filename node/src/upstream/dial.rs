//! Connections to a substitute server: name look-up, TCP and TLS, within one deadline.
//!
//! Addresses are tried in turn, a quarter of a second apart and both families alternating
//! (RFC 8305), since a host whose IPv6 leads nowhere would otherwise cost every request the whole
//! deadline.

use super::UpstreamsError;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustls::pki_types::ServerName;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

/// How long one address has before the next is tried as well: RFC 8305, section 5.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Most addresses that are tried: farms have one or two of each family.
const MAX_ADDRESSES: usize = 8;

/// Octets in both directions, whatever carries them.
pub(super) trait Link: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Link for T {}

/// Where a substitute server is and how requests to it are spelled.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// The base URL without a trailing slash, for errors and for joining.
    pub(super) label: Arc<str>,
    /// What precedes `/HASH.narinfo` in a request.
    pub(super) path: String,
    /// The Host header.
    pub(super) authority: String,
    host: Host<String>,
    port: u16,
    is_tls: bool,
}

impl Origin {
    /// Where `url` is.
    pub(super) fn new(url: &Url) -> Result<Self, UpstreamsError> {
        let refused = |reason| UpstreamsError::Url { url: url.to_string(), reason };
        let is_tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(refused("only http and https are spoken")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("it has a user name or password, which are not sent"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refused("a base URL has no query and no fragment"));
        }
        let host = url.host().ok_or_else(|| refused("it names no host"))?.to_owned();
        let port = url.port_or_known_default().ok_or_else(|| refused("it names no port"))?;
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        };
        let path = url.path().trim_end_matches('/').to_owned();
        let label = url.as_str().trim_end_matches('/').into();
        Ok(Self { label, path, authority, host, port, is_tls })
    }

    /// Whether TLS is needed to get there.
    pub(super) fn is_tls(&self) -> bool {
        self.is_tls
    }
}

/// Connects to `origin`; the caller sets the deadline.
pub(super) async fn dial(
    origin: &Origin,
    tls: &Arc<rustls::ClientConfig>,
) -> io::Result<Box<dyn Link>> {
    let addresses: Vec<SocketAddr> = match &origin.host {
        Host::Domain(name) => {
            tokio::net::lookup_host((name.as_str(), origin.port)).await?.collect()
        }
        Host::Ipv4(ip) => vec![SocketAddr::new(IpAddr::V4(*ip), origin.port)],
        Host::Ipv6(ip) => vec![SocketAddr::new(IpAddr::V6(*ip), origin.port)],
    };
    let stream = connect_any(alternate(addresses)).await?;
    // Requests are written whole; waiting to fill a segment would only delay the last one.
    stream.set_nodelay(true)?;
    if !origin.is_tls {
        return Ok(Box::new(stream));
    }
    let name = match &origin.host {
        Host::Domain(name) => ServerName::try_from(name.clone()).map_err(io::Error::other)?,
        Host::Ipv4(ip) => ServerName::from(IpAddr::V4(*ip)),
        Host::Ipv6(ip) => ServerName::from(IpAddr::V6(*ip)),
    };
    Ok(Box::new(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?))
}

/// Keeps the resolver's order within a family and alternates families, the resolver's first
/// choice in front.
fn alternate(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_first_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (preferred, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == is_first_v6);
    let (mut preferred, mut other) = (preferred.into_iter(), other.into_iter());
    let mut order = Vec::new();
    while order.len() < MAX_ADDRESSES {
        let pair = [preferred.next(), other.next()];
        if pair == [None, None] {
            break;
        }
        order.extend(pair.into_iter().flatten());
    }
    order
}

/// The first connection that comes about.
async fn connect_any(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut untried = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the host name has no addresses");
    loop {
        if let Some(address) = untried.next() {
            attempts.push(TcpStream::connect(address));
        } else if attempts.is_empty() {
            return Err(last_error);
        }
        tokio::select! {
            Some(outcome) = attempts.next() => match outcome {
                Ok(stream) => return Ok(stream),
                Err(error) => last_error = error,
            },
            () = tokio::time::sleep(NEXT_ADDRESS), if untried.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str) -> Result<Origin, UpstreamsError> {
        Origin::new(&Url::parse(url).expect("a URL"))
    }

    #[test]
    fn an_origin_spells_requests() {
        let farm = origin("https://ci.guix.gnu.org").expect("accepted");
        assert_eq!((&*farm.label, &*farm.path), ("https://ci.guix.gnu.org", ""));
        assert_eq!((&*farm.authority, farm.port), ("ci.guix.gnu.org", 443));
        let mirror = origin("http://[::1]:8080/guix/").expect("accepted");
        assert_eq!((&*mirror.label, &*mirror.path), ("http://[::1]:8080/guix", "/guix"));
        assert_eq!(mirror.authority, "[::1]:8080");
    }

    #[test]
    fn what_cannot_be_a_base_is_refused() {
        for url in ["ftp://x/", "file:///srv", "http://u:p@x/", "http://x/?q", "http://x/#f"] {
            assert!(matches!(origin(url), Err(UpstreamsError::Url { .. })), "{url}");
        }
    }

    #[test]
    fn families_alternate() {
        let parse = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter().map(|text| text.parse().expect("an address")).collect()
        };
        let given = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]);
        assert_eq!(alternate(given), parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
        assert!(alternate(Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn a_dead_address_is_passed_over() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let live = listener.local_addr().expect("an address");
        let dead = {
            let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            gone.local_addr().expect("an address")
        };
        let stream = connect_any(vec![dead, live]).await.expect("connects");
        assert_eq!(stream.peer_addr().expect("a peer"), live);
        assert!(connect_any(vec![dead]).await.is_err());
        assert!(connect_any(Vec::new()).await.is_err());
    }
}
