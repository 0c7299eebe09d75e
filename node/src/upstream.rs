//! Substitute servers over HTTP(S): narinfos in pipelined batches, nars as decoded streams.
//!
//! A map, in the order in which a request travels:
//!
//! - [`Upstreams`], the handle: servers in the order in which they are asked;
//! - `request`: one narinfo asked for, which gets exactly one reply;
//! - `pipeline`, `exchange`, `response`, `dial`: requests queue for a server, a few connections
//!   answer them, hundreds under way on each, as guix itself does;
//! - `breaker`, `probe`: a dead server costs nothing, and is noticed when it comes back;
//! - `choice`, `nar`, `decode`: which nar to download, the download, its decompression;
//! - `warm`: connections for nars that are open before one is asked for.
//!
//! Nothing is verified here: narinfos and nars are what the server claims. Only lengths are held
//! to what the caller says. Proxy settings of the environment are not followed.

mod breaker;
pub mod choice;
mod decode;
mod dial;
mod error;
mod exchange;
mod nar;
mod pipeline;
mod probe;
mod request;
mod response;
#[cfg(test)]
mod tests;
mod warm;

pub use choice::{best_source, ranked_sources, ranked_sources_from};
pub use decode::decode;
pub use error::{ResponseProblem, UpstreamError};
pub use nar::{RawNar, RawPart, UpstreamNar};
pub use request::{NarinfoReplies, NarinfoReply};

use crate::rate::DownloadLimit;
use dial::Origin;
use narswarm_protocol::limits::MAX_UPSTREAMS;
use narswarm_protocol::narinfo::NarSource;
use narswarm_protocol::store_path::StoreHash;
use pipeline::Pipeline;
use rustls::pki_types::CertificateDer;
use rustls_platform_verifier::Verifier;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;
use warm::Warmth;

/// Redirects of a nar that are followed: farms use none, mirrors and content networks one or two.
const MAX_REDIRECTS: usize = 5;

/// How patiently servers are asked.
#[derive(Debug, Clone)]
pub struct UpstreamConfig {
    /// For name look-up, TCP and TLS together: a lost SYN is sent anew after 1 and 3 s, so 5 s
    /// leave two chances.
    pub connect_timeout: Duration,
    /// Longest time without an octet while narinfos are awaited: a farm's slowest ones have come
    /// after 8 s.
    pub silence: Duration,
    /// Longest time for one narinfo since the previous one was complete, drop by drop or not.
    pub answer_timeout: Duration,
    /// Longest time a narinfo request spends with one server, its turn included. guix has none;
    /// two thousand narinfos over a 25 kB/s link take 100 s.
    pub request_timeout: Duration,
    /// How long an unused narinfo connection is kept: below nginx's 75 s, so that it is rarely
    /// the server that closes.
    pub idle_timeout: Duration,
    /// How long requests wait for a server that rested to show that it is back.
    pub probe_patience: Duration,
    /// Narinfo connections to one server: two halve the slow start of a large burst.
    pub connections: usize,
    /// Narinfo requests under way on one connection: what guix sends, so every farm takes it.
    pub window: usize,
    /// From asking for a nar to its headers: `guix publish` may have to begin compressing.
    pub first_byte_timeout: Duration,
    /// Longest time without an octet of a nar: TCP has tried a lost packet again some five times
    /// by then, and a reader is waiting.
    pub stall_timeout: Duration,
    /// The cap on what is downloaded; narinfos are too small to count.
    pub download: DownloadLimit,
    /// How this node calls itself.
    pub user_agent: String,
    /// Certificates to trust for HTTPS besides the system's, as of an institution's own CA.
    pub extra_roots: Vec<CertificateDer<'static>>,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            silence: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(60),
            probe_patience: Duration::from_millis(500),
            connections: 2,
            window: 1000,
            first_byte_timeout: Duration::from_secs(20),
            stall_timeout: Duration::from_secs(12),
            download: DownloadLimit::default(),
            user_agent: concat!("narswarm/", env!("CARGO_PKG_VERSION")).to_owned(),
            extra_roots: Vec::new(),
        }
    }
}

/// Why a list of substitute servers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamsError {
    /// A URL that is no substitute server's base.
    #[error("the substitute URL {url} cannot be used: {reason}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More servers than are asked in turn.
    #[error("{given} substitute URLs are too many, at most {most} are asked in turn")]
    TooMany {
        /// How many were given.
        given: usize,
        /// How many may be.
        most: usize,
    },
    /// HTTPS is wanted, and no certificates are trusted.
    #[error(
        "{url} needs TLS, which cannot be set up (is SSL_CERT_DIR or SSL_CERT_FILE right?): {source}"
    )]
    Tls {
        /// The first HTTPS server.
        url: String,
        /// What the TLS library said.
        source: rustls::Error,
    },
    /// The HTTP client cannot be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(#[from] reqwest::Error),
}

/// The substitute servers, in the order in which they are asked. Clones share everything.
#[derive(Clone)]
pub struct Upstreams {
    inner: Arc<Inner>,
}

struct Inner {
    urls: Vec<Url>,
    pipelines: Vec<Arc<Pipeline>>,
    warmth: Vec<Warmth>,
    http: reqwest::Client,
    config: UpstreamConfig,
    /// Ends the connections' tasks with the last handle.
    _stop: DropGuard,
}

impl Upstreams {
    /// Servers to be asked in this order; none is fine. Opens no connection yet.
    ///
    /// # Errors
    /// See [`UpstreamsError`].
    pub fn new(urls: Vec<Url>, config: UpstreamConfig) -> Result<Self, UpstreamsError> {
        if urls.len() > MAX_UPSTREAMS {
            return Err(UpstreamsError::TooMany { given: urls.len(), most: MAX_UPSTREAMS });
        }
        let origins = urls.iter().map(Origin::new).collect::<Result<Vec<_>, _>>()?;
        let tls = match tls_config(&config) {
            Ok(tls) => tls,
            Err(source) => match origins.iter().find(|origin| origin.is_tls()) {
                Some(origin) => {
                    return Err(UpstreamsError::Tls { url: origin.label.to_string(), source });
                }
                // Plain HTTP needs no certificates; a redirect to HTTPS will fail as untrusted.
                None => tls_without_roots(),
            },
        };
        let http = nar_client(&config, &tls)?;
        let tls = Arc::new(tls);
        let stop = CancellationToken::new();
        let mut pipelines: Vec<Arc<Pipeline>> = Vec::with_capacity(origins.len());
        for (index, origin) in origins.into_iter().enumerate().rev() {
            let next = pipelines.last().cloned();
            let (config, tls, stop) = (config.clone(), Arc::clone(&tls), stop.clone());
            pipelines.push(Arc::new(Pipeline::new(index, origin, config, tls, next, stop)));
        }
        pipelines.reverse();
        let warmth = urls.iter().map(|_| Warmth::default()).collect();
        let inner = Inner { urls, pipelines, warmth, http, config, _stop: stop.drop_guard() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// How many servers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.urls.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.urls.is_empty()
    }

    /// The base URL of a server.
    #[must_use]
    pub fn url(&self, upstream: usize) -> Option<&Url> {
        self.inner.urls.get(upstream)
    }

    /// Whether a server is asked at present, not resting after failures.
    #[must_use]
    pub fn is_working(&self, upstream: usize) -> bool {
        self.inner.pipelines.get(upstream).is_some_and(|pipeline| pipeline.is_working())
    }

    /// Asks for the narinfos of `hashes`: the first server for all, the next one for what that
    /// lacks or fails to give, and so on. Replies come in any order, each as soon as it is known;
    /// each hash gets exactly one, in bounded time. Must be called within a tokio runtime.
    #[must_use]
    pub fn narinfos(&self, hashes: Vec<StoreHash>) -> NarinfoReplies {
        self.narinfos_from(0, hashes)
    }

    /// As [`Self::narinfos`], but passes over the servers before `upstream`: for when those have
    /// an item's narinfo but fail to give its nar.
    #[must_use]
    pub fn narinfos_from(&self, upstream: usize, hashes: Vec<StoreHash>) -> NarinfoReplies {
        let (requests, replies) = request::batch(hashes);
        match self.inner.pipelines.get(upstream) {
            Some(first) => first.enqueue(requests),
            None => requests.into_iter().for_each(request::Request::conclude),
        }
        replies
    }

    /// Opens a narinfo connection to each server that has none, so that the next batch saves the
    /// handshake. Cheap to call often. Must be called within a tokio runtime.
    pub fn connect_ahead(&self) {
        self.inner.pipelines.iter().for_each(Pipeline::connect_ahead);
    }

    /// Opens a connection for nars to each server that has none, so that the next nar saves the
    /// handshake, too. Cheap to call often. Must be called within a tokio runtime.
    pub fn connect_ahead_for_nars(&self) {
        let Inner { urls, pipelines, warmth, http, config, .. } = &*self.inner;
        // Well before the pool lets go, lest the server's end of it comes first.
        let kept_for = config.idle_timeout * 4 / 5;
        for ((url, pipeline), warmth) in urls.iter().zip(pipelines).zip(warmth) {
            if pipeline.is_working() && warmth.is_cold(Instant::now(), kept_for) {
                let patience = config.connect_timeout + config.silence;
                tokio::spawn(warm::open(http.clone(), url.clone(), patience));
            }
        }
    }

    /// Forgets past failures, as after a change of network.
    pub fn forget_failures(&self) {
        self.inner.pipelines.iter().for_each(|pipeline| pipeline.forgive());
    }

    /// Begins to download and decode a nar of `nar_size` octets (the signed NarSize) from a
    /// server. `source` must come from that server's own narinfo: an absolute URL is followed to
    /// wherever it leads.
    ///
    /// # Errors
    /// See [`UpstreamError`]; what goes wrong after the headers comes out of the stream.
    pub async fn nar(
        &self,
        upstream: usize,
        source: &NarSource,
        nar_size: u64,
    ) -> Result<UpstreamNar, UpstreamError> {
        self.nar_from(upstream, source, nar_size, 0).await
    }

    /// As [`Self::nar`], for when octets before `from` aren't needed any more. Only an uncompressed
    /// nar can begin anywhere else than at its head, and only where the server knows ranges:
    /// [`UpstreamNar::start`] says where it begins.
    ///
    /// # Errors
    /// As [`Self::nar`].
    pub async fn nar_from(
        &self,
        upstream: usize,
        source: &NarSource,
        nar_size: u64,
        from: u64,
    ) -> Result<UpstreamNar, UpstreamError> {
        let download = self.download(upstream, source, nar_size)?;
        nar::start(nar::Download { from, ..download }, false).await.map(UpstreamNar::new)
    }

    /// As [`Self::nar`], but gives the compressed octets too, as they are: for passing on what a
    /// narinfo that signs its URLs promises. The last octets can be withheld until the decoded
    /// ones have hashed to the NarHash.
    ///
    /// # Errors
    /// As [`Self::nar`].
    pub async fn nar_raw(
        &self,
        upstream: usize,
        source: &NarSource,
        nar_size: u64,
    ) -> Result<RawNar, UpstreamError> {
        let download = self.download(upstream, source, nar_size)?;
        nar::start(download, true).await
    }

    fn download(
        &self,
        upstream: usize,
        source: &NarSource,
        nar_size: u64,
    ) -> Result<nar::Download, UpstreamError> {
        let inner = &self.inner;
        let pipeline = inner
            .pipelines
            .get(upstream)
            .ok_or(UpstreamError::NoSuchUpstream { index: upstream, count: inner.urls.len() })?;
        let url = nar::locate(&pipeline.origin.label, &source.url)?;
        inner.warmth.iter().skip(upstream).take(1).for_each(|w| w.note_use(Instant::now()));
        Ok(nar::Download {
            http: inner.http.clone(),
            url,
            compression: source.compression,
            nar_size,
            from: 0,
            first_byte_timeout: inner.config.first_byte_timeout,
            stall_timeout: inner.config.stall_timeout,
            download: inner.config.download.clone(),
        })
    }
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let urls = self.inner.urls.iter().map(Url::as_str);
        f.debug_list().entries(urls).finish()
    }
}

/// The client for nars: HTTP/1.1 only, since large downloads over one HTTP/2 connection share
/// one congestion window; no proxy from the environment, as for narinfos.
fn nar_client(
    config: &UpstreamConfig,
    tls: &rustls::ClientConfig,
) -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .http1_only()
        .no_proxy()
        .referer(false)
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::limited(MAX_REDIRECTS))
        .connect_timeout(config.connect_timeout)
        .pool_idle_timeout(config.idle_timeout)
        .user_agent(&config.user_agent)
        .build()
}

/// The system's certificates and those of the configuration, for HTTP/1.1.
fn tls_config(config: &UpstreamConfig) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = config.extra_roots.iter().cloned();
    let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(&provider))?;
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

/// Trusts nobody.
fn tls_without_roots() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the versions that the library calls safe")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}
