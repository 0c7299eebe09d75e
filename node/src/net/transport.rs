//! How bytes travel: TCP with TLS or noise and yamux, QUIC, names resolved by DNS, and through
//! relays, which see neither content nor names of protocols.

use super::line::Line;
use super::pacing::Paced;
use super::reach::guard::{Guard, Guarded};
use super::{resolver, tls, yamux};
use futures::future::{self, BoxFuture, FutureExt};
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, OrTransport, Transport};
use libp2p::core::upgrade::{
    InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo, Version,
};
use libp2p::identity::Keypair;
use libp2p::{PeerId, dns, noise, quic, relay, tcp};
use socket2::SockRef;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a connection may take to be set up: several round trips of the worst links, and short
/// enough that an address which swallows packets is given up while others are still tried.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a QUIC connection survives silence. It sends something every five seconds itself.
const QUIC_IDLE_MS: u32 = 20_000;

/// Octets of a connection that the kernel takes before it has sent those before
/// (`TCP_NOTSENT_LOWAT`): a hundredth of a second at 20 Mbit/s, so that a piece which is granted
/// begins to arrive at once and one that is taken back is not on its way. On fast lines what the
/// kernel keeps unacknowledged bridges the time until more is written: four times as much brings
/// nothing on loopback, nor at 40 ms.
const UNSENT_BYTES: u32 = 32 * 1024;

/// Why the transports cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// Noise cannot be set up.
    #[error("cannot set up noise: {0}")]
    Noise(#[from] noise::Error),
}

/// A connection to a peer.
type Muxed = (PeerId, StreamMuxerBox);

/// All transports of a node with this key, which dials what `guard` lets through; `relayed` is the
/// one through relays, `resolver` the server that is asked for names in place of the system's.
///
/// # Errors
/// See [`SetupError`]; both concern the key. Without a usable resolver configuration names are
/// not resolved, which is logged.
pub fn build(
    key: &Keypair,
    line: Option<Duration>,
    guard: &Guard,
    relayed: Option<relay::client::Transport>,
    resolver: Option<SocketAddr>,
) -> Result<Boxed<Muxed>, SetupError> {
    let security = Security { tls: tls::Config::new(key)?, noise: noise::Config::new(key)? };
    let direct = without_names(key, line, guard, &security);
    let direct = match resolver::config(resolver) {
        Ok((config, options)) => dns::tokio::Transport::custom(direct, config, options).boxed(),
        Err(error) => {
            tracing::warn!("names in addresses are not resolved: {error}");
            direct
        }
    };
    let Some(relayed) = relayed else { return Ok(Paced::new(direct).boxed()) };
    // The relay carries what it can't read: both ends secure it between them.
    let relayed = relayed
        .upgrade(Version::V1Lazy)
        .authenticate(security)
        .multiplex(yamux::Config::default())
        .timeout(SETUP_TIMEOUT)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let both = OrTransport::new(relayed, direct).map(|either, _| one_of(either)).boxed();
    Ok(Paced::new(both).boxed())
}

/// TCP and QUIC. Addresses have been resolved here, so this is where they are judged.
fn without_names(
    key: &Keypair,
    line: Option<Duration>,
    guard: &Guard,
    security: &Security,
) -> Boxed<Muxed> {
    let tcp = || {
        tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
            .map(|socket, _| short_queue(socket))
    };
    if let Some(one_way) = line {
        let distant = tcp().and_then(move |socket, point| async move {
            if point.is_dialer() {
                tokio::time::sleep(one_way * 2).await;
            }
            Ok::<_, std::convert::Infallible>(Line::new(socket, one_way))
        });
        return over(distant, security);
    }
    let tcp = over(tcp(), security);
    let mut config = quic::Config::new(key);
    config.max_idle_timeout = QUIC_IDLE_MS;
    let quic = quic::tokio::Transport::new(config)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let both = OrTransport::new(quic, tcp).map(|either, _| one_of(either)).boxed();
    Guarded::new(both, guard.clone()).boxed()
}

/// TLS or noise, and yamux, over connections of octets.
fn over<T, C>(octets: T, security: &Security) -> Boxed<Muxed>
where
    T: Transport<Output = C> + Send + Unpin + 'static,
    T::Error: Send + Sync + 'static,
    T::Dial: Send,
    T::ListenerUpgrade: Send,
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    octets
        .upgrade(Version::V1Lazy)
        .authenticate(security.clone())
        .multiplex(yamux::Config::default())
        .timeout(SETUP_TIMEOUT)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed()
}

fn one_of(either: future::Either<Muxed, Muxed>) -> Muxed {
    match either {
        future::Either::Left(connection) | future::Either::Right(connection) => connection,
    }
}

/// Lets the kernel hold little that it hasn't sent, so that what is written next is decided late.
fn short_queue(socket: tcp::tokio::TcpStream) -> tcp::tokio::TcpStream {
    if let Err(error) = SockRef::from(&socket.0).set_tcp_notsent_lowat(UNSENT_BYTES) {
        tracing::debug!(%error, "the kernel queues as much as it likes");
    }
    socket
}

/// TLS, or noise with those that have no TLS.
#[derive(Clone)]
struct Security {
    tls: tls::Config,
    noise: noise::Config,
}

/// The name under which noise is negotiated.
const NOISE: &str = "/noise";

/// A connection secured by one or the other.
type Secured<C> = (PeerId, future::Either<futures_rustls::TlsStream<C>, noise::Output<C>>);

/// Why a connection could not be secured.
#[derive(Debug, thiserror::Error)]
enum SecurityError {
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error("the noise handshake failed: {0}")]
    Noise(#[from] noise::Error),
}

impl UpgradeInfo for Security {
    type Info = &'static str;
    type InfoIter = std::iter::Chain<
        <tls::Config as UpgradeInfo>::InfoIter,
        <noise::Config as UpgradeInfo>::InfoIter,
    >;

    fn protocol_info(&self) -> Self::InfoIter {
        self.tls.protocol_info().chain(self.noise.protocol_info())
    }
}

impl<C> InboundConnectionUpgrade<C> for Security
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = Secured<C>;
    type Error = SecurityError;
    type Future = BoxFuture<'static, Result<Secured<C>, SecurityError>>;

    fn upgrade_inbound(self, socket: C, name: &'static str) -> Self::Future {
        async move {
            if name == NOISE {
                let (peer, stream) = self.noise.upgrade_inbound(socket, name).await?;
                return Ok((peer, future::Either::Right(stream)));
            }
            let (peer, stream) = self.tls.upgrade_inbound(socket, name).await?;
            Ok((peer, future::Either::Left(stream)))
        }
        .boxed()
    }
}

impl<C> OutboundConnectionUpgrade<C> for Security
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = Secured<C>;
    type Error = SecurityError;
    type Future = BoxFuture<'static, Result<Secured<C>, SecurityError>>;

    fn upgrade_outbound(self, socket: C, name: &'static str) -> Self::Future {
        async move {
            if name == NOISE {
                let (peer, stream) = self.noise.upgrade_outbound(socket, name).await?;
                return Ok((peer, future::Either::Right(stream)));
            }
            let (peer, stream) = self.tls.upgrade_outbound(socket, name).await?;
            Ok((peer, future::Either::Left(stream)))
        }
        .boxed()
    }
}
