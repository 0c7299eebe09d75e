//! A client that asks as guix does and believes nothing: what a node gives is compared, octet for
//! octet, with what the mirror had.

use super::holding::{Holding, nar_hash, signed_head};
use super::http_client::{ClientError, HttpClient, Reply};
use super::waiting::{soon, until};
use narswarm_protocol::acl::Acl;
use narswarm_protocol::narinfo::{Compression, UnverifiedNarinfo};
use std::net::SocketAddr;

/// A user of one substitute URL.
pub struct Guix {
    http: SocketAddr,
    acl: Acl,
}

impl Guix {
    /// One that asks at `http` and believes the keys of `acl`.
    #[must_use]
    pub fn new(http: SocketAddr, acl: Acl) -> Self {
        Self { http, acl }
    }

    /// Everything comes out as the mirror had it: narinfos asked for in one write, then the nars
    /// of those that have one.
    pub async fn gets_all(&self, holdings: &[Holding]) {
        self.gets_narinfos(holdings).await;
        for holding in holdings.iter().filter(|holding| holding.nar.is_some()) {
            self.gets_nar(holding).await;
        }
    }

    /// All narinfos, asked for in one write, are what the mirror's say.
    pub async fn gets_narinfos(&self, holdings: &[Holding]) {
        let paths: Vec<_> = holdings.iter().map(Holding::narinfo_path).collect();
        let client = HttpClient::connect(self.http).await.expect("the node listens");
        let burst = soon("narinfos", client.burst(&paths)).await.expect("answers to all");
        for (holding, reply) in holdings.iter().zip(&burst.replies) {
            self.is_narinfo(holding, reply);
        }
    }

    /// A reply has the signed part untouched and leads to the nar on the node itself.
    ///
    /// # Panics
    /// When not.
    pub fn is_narinfo(&self, holding: &Holding, reply: &Reply) {
        let item = holding.item();
        assert_eq!(reply.head.status, 200, "the narinfo of {item}");
        assert_eq!(reply.head.content_length(), Some(reply.body.len() as u64), "{item}");
        let (ours, theirs) = (holding.signed_head(), signed_head(&reply.body));
        assert_eq!(String::from_utf8_lossy(theirs), String::from_utf8_lossy(ours), "{item}");
        let narinfo = UnverifiedNarinfo::parse(&reply.body).expect("well-formed");
        let narinfo = narinfo.verify(&self.acl).expect("signed");
        let plain = |compression| compression == Compression::None;
        let source = narinfo.sources().iter().find(|source| plain(source.compression));
        let source = source.unwrap_or_else(|| panic!("no uncompressed nar of {item}"));
        assert_eq!(format!("/{}", source.url), escaped(&holding.nar_path()));
        assert_eq!(source.file_size, Some(holding.narinfo.nar_size()), "{item}");
    }

    /// The nar is the mirror's.
    pub async fn gets_nar(&self, holding: &Holding) {
        let reply = self.nar(holding).await;
        let reply = reply.unwrap_or_else(|error| panic!("the nar of {}: {error}", holding.item()));
        assert_eq!(reply.head.status, 200, "the nar of {}", holding.item());
        is_nar(holding, &reply);
    }

    /// Asks for a nar, whatever comes of it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn nar(&self, holding: &Holding) -> Result<Reply, ClientError> {
        self.get(&escaped(&holding.nar_path())).await
    }

    /// Asks for anything.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&self, path: &str) -> Result<Reply, ClientError> {
        let mut client = HttpClient::connect(self.http).await.map_err(ClientError::Io)?;
        soon(path, client.get(path)).await
    }

    /// The status of a narinfo request.
    pub async fn narinfo_status(&self, holding: &Holding) -> u16 {
        let reply = self.get(&holding.narinfo_path()).await;
        reply.expect("every narinfo request is answered").head.status
    }

    /// Asks for a narinfo again and again, as guix does at its next command, until it is there.
    pub async fn finds(&self, holding: &Holding) {
        until("the narinfo to be found", async || self.narinfo_status(holding).await == 200).await;
    }
}

/// A reply is the mirror's nar, whole.
///
/// # Panics
/// When not.
pub fn is_nar(holding: &Holding, reply: &Reply) {
    let (item, nar) = (holding.item(), holding.nar());
    assert_eq!(reply.head.content_length(), Some(nar.len() as u64), "{item}");
    assert_eq!(nar_hash(&reply.body), holding.narinfo.nar_hash(), "the nar of {item}");
    // Long octets are not printed.
    assert!(reply.body == *nar, "the nar of {item} differs");
}

/// A path as it stands in a URL.
fn escaped(path: &str) -> String {
    path.replace('+', "%2B").replace('=', "%3D").replace('?', "%3F")
}
