//! libp2p's `/tls/1.0.0` with AES-128-GCM first where the processor has instructions for it.
//!
//! libp2p-tls prefers ChaCha20 and cannot be told otherwise, which costs a third of the
//! throughput between two peers. Certificates are made and checked by its functions
//! (<https://github.com/libp2p/specs/blob/master/tls/tls.md>), and the handshake interoperates
//! with its own in both directions.

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, FutureExt};
use futures_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use libp2p::PeerId;
use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::identity::Keypair;
use libp2p_tls::certificate;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, sign::any_ecdsa_type};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, ServerConfig,
    SignatureScheme,
};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// The name under which the upgrade is negotiated.
const PROTOCOL: &str = "/tls/1.0.0";

/// The application protocol that the specification asks for.
const ALPN: &[u8] = b"libp2p";

/// Why TLS cannot be set up, or a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// This node's certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] certificate::GenError),
    /// The configuration is not one that rustls accepts.
    #[error("cannot set up tls: {0}")]
    Setup(#[from] rustls::Error),
    /// The handshake failed.
    #[error("the tls handshake failed: {0}")]
    Handshake(#[source] std::io::Error),
    /// The remote's certificate is not one of libp2p's.
    #[error("the remote's certificate is not acceptable: {0}")]
    Remote(#[from] certificate::ParseError),
    /// The remote showed no certificate, or several.
    #[error("the remote showed {0} certificates instead of one")]
    Count(usize),
}

/// The upgrade of a connection to TLS.
#[derive(Clone)]
pub struct Config {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Config {
    /// Makes a certificate for `identity` and the configuration of both roles.
    ///
    /// # Errors
    /// [`TlsError::Certificate`] and [`TlsError::Setup`].
    pub fn new(identity: &Keypair) -> Result<Self, TlsError> {
        let (certificate, key) = certificate::generate(identity)?;
        let identity = Arc::new(OneCertificate(Arc::new(CertifiedKey::new(
            vec![certificate],
            any_ecdsa_type(&key)?,
        ))));
        let provider = Arc::new(provider(has_aes_instructions()));
        let versions = &[&rustls::version::TLS13];

        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(Arc::new(Verifier))
            .with_cert_resolver(identity.clone());
        server.alpn_protocols = vec![ALPN.to_vec()];
        // A stock peer offers ChaCha20 first, without a preference of its own.
        server.ignore_client_order = true;
        // Connections are long and few: resumption would save nothing.
        server.send_tls13_tickets = 0;

        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier))
            .with_client_cert_resolver(identity);
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        // The specification forbids a server name.
        client.enable_sni = false;

        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

/// Whether AES-GCM runs in hardware. Without, ChaCha20 is several times faster.
fn has_aes_instructions() -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    return false;
}

/// The suites of TLS 1.3 in our order.
fn provider(aes: bool) -> CryptoProvider {
    let mut provider = default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    if !aes {
        provider.cipher_suites.rotate_right(1);
    }
    provider
}

/// The one certificate of this node, whatever is asked for.
#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesClientCert for OneCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for OneCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// Accepts exactly one self-signed certificate with libp2p's extension, which binds it to a peer
/// id. Which peer it is, the swarm compares with the one that it dialled.
#[derive(Debug)]
struct Verifier;

impl Verifier {
    fn certificate(
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        if !intermediates.is_empty() {
            return Err(rustls::Error::General("more than one certificate".to_owned()));
        }
        certificate::parse(end_entity)?;
        Ok(())
    }

    fn signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        certificate::parse(certificate)?.verify_signature(
            signed.scheme,
            message,
            signed.signature(),
        )?;
        Ok(HandshakeSignatureValid::assertion())
    }

    /// TLS 1.2 is not offered, so this is never asked; it refuses all the same.
    fn refuse_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only tls 1.3 is spoken".to_owned()))
    }

    /// The schemes that libp2p-tls verifies, in its order.
    fn schemes() -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PSS_SHA512,
            SignatureScheme::RSA_PSS_SHA384,
            SignatureScheme::RSA_PSS_SHA256,
        ]
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Self::certificate(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Self::certificate(end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

/// Whose certificate the handshake has shown.
fn remote_peer(state: &CommonState) -> Result<PeerId, TlsError> {
    match state.peer_certificates() {
        Some([certificate]) => Ok(certificate::parse(certificate)?.peer_id()),
        other => Err(TlsError::Count(other.map_or(0, <[_]>::len))),
    }
}

impl UpgradeInfo for Config {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

impl<C> InboundConnectionUpgrade<C> for Config
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, TlsStream<C>);
    type Error = TlsError;
    type Future = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, socket: C, _: Self::Info) -> Self::Future {
        async move {
            let accepted = TlsAcceptor::from(self.server).accept(socket).await;
            let stream = accepted.map_err(TlsError::Handshake)?;
            Ok((remote_peer(stream.get_ref().1)?, stream.into()))
        }
        .boxed()
    }
}

impl<C> OutboundConnectionUpgrade<C> for Config
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, TlsStream<C>);
    type Error = TlsError;
    type Future = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, socket: C, _: Self::Info) -> Self::Future {
        async move {
            // rustls wants a name; an address is never sent, and peers are known by their keys.
            let name = ServerName::from(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            let connected = TlsConnector::from(self.client).connect(name, socket).await;
            let stream = connected.map_err(TlsError::Handshake)?;
            Ok((remote_peer(stream.get_ref().1)?, stream.into()))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::CipherSuite;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    #[test]
    fn the_order_follows_the_processor() {
        let first = |aes| provider(aes).cipher_suites[0].suite();
        assert_eq!(first(true), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(first(false), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    }

    /// Shakes hands as both sides over a pipe and returns what each learned of the other.
    async fn shake(client: Config, server: Config) -> (PeerId, CipherSuite, PeerId) {
        let (a, b) = tokio::io::duplex(64 * 1024);
        let (out, inn) = futures::join!(
            client.upgrade_outbound(a.compat(), PROTOCOL),
            server.upgrade_inbound(b.compat(), PROTOCOL),
        );
        let ((server_id, stream), (client_id, _)) = (out.expect("client"), inn.expect("server"));
        let suite = stream.get_ref().1.negotiated_cipher_suite().expect("after the handshake");
        (server_id, suite.suite(), client_id)
    }

    #[tokio::test]
    async fn both_sides_learn_who_the_other_is() {
        let (a, b) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let (client, server) = (Config::new(&a).expect("a"), Config::new(&b).expect("b"));
        let (server_id, suite, client_id) = shake(client, server).await;
        assert_eq!((server_id, client_id), (b.public().to_peer_id(), a.public().to_peer_id()));
        assert_eq!(suite, provider(has_aes_instructions()).cipher_suites[0].suite());
    }

    #[tokio::test]
    async fn the_servers_order_wins() {
        let (a, b) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let mut client = Config::new(&a).expect("a");
        let stock = libp2p_tls::make_client_config(&a, None).expect("stock");
        assert_eq!(
            stock.crypto_provider().cipher_suites[0].suite(),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        );
        client.client = Arc::new(stock);
        let (_, suite, _) = shake(client, Config::new(&b).expect("b")).await;
        assert_eq!(suite, provider(has_aes_instructions()).cipher_suites[0].suite());
    }

    #[tokio::test]
    async fn garbage_is_a_failed_handshake() {
        let config = Config::new(&Keypair::generate_ed25519()).expect("config");
        let (a, mut b) = tokio::io::duplex(64 * 1024);
        let inbound = config.upgrade_inbound(a.compat(), PROTOCOL);
        tokio::io::AsyncWriteExt::write_all(&mut b, &[0x42; 1000]).await.expect("write");
        drop(b);
        assert!(matches!(inbound.await, Err(TlsError::Handshake(_))));
    }
}
