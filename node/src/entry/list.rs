//! Entry nodes by signed lists, from a URL or a file.
//!
//! Where a list comes from doesn't matter, since nothing of it is believed, or even parsed, before
//! its signature is found good. What its carrier could still do is to show an old list again, or
//! none: so the last good one is kept on disk, is used when there is none, and only a later one
//! replaces it.

use super::Offer;
use futures::StreamExt;
use narswarm_protocol::limits::MAX_SEED_LIST_BYTES;
use narswarm_protocol::seed_list::{SeedList, SeedListError, SeedListKey};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use url::Url;

/// How long a server may take for the whole list, connection included.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// How long it may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a list may be moved elsewhere.
const MAX_REDIRECTS: usize = 3;

/// Where a list is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ListSource {
    /// At a URL: http or https, which makes no difference to what is believed.
    Url(Url),
    /// In a file.
    File(PathBuf),
}

impl FromStr for ListSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(Self::Url(url)),
            Ok(url) if url.scheme() == "file" => {
                let path = url.to_file_path();
                path.map(Self::File).map_err(|()| format!("{text} names no file"))
            }
            Ok(url) => {
                Err(format!("{text}: {} is not supported, only http and https", url.scheme()))
            }
            Err(_) if !text.is_empty() => Ok(Self::File(text.into())),
            Err(_) => Err("a list has no empty name".to_owned()),
        }
    }
}

impl TryFrom<String> for ListSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ListSource> for String {
    fn from(source: ListSource) -> Self {
        source.to_string()
    }
}

impl fmt::Display for ListSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => url.fmt(f),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Why a list can't be had or isn't used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The server gives none.
    #[error("cannot fetch it: {reason}")]
    Http {
        /// What went wrong, with its causes.
        reason: String,
    },
    /// The file can't be read.
    #[error("cannot read it: {0}")]
    File(#[from] io::Error),
    /// It isn't believed.
    #[error(transparent)]
    Refused(#[from] SeedListError),
    /// Two lists have the same number.
    #[error(
        "another list with the number {sequence} was seen before; whoever signs it has to raise it"
    )]
    SameNumber {
        /// The number.
        sequence: u64,
    },
}

/// Gets a list, unchecked: at most one octet more than a list may have.
///
/// # Errors
/// [`ListError::Http`] and [`ListError::File`].
pub async fn get(source: &ListSource) -> Result<Vec<u8>, ListError> {
    match source {
        ListSource::File(path) => {
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || read_bounded(&path)).await;
            Ok(read.map_err(io::Error::other)??)
        }
        ListSource::Url(url) => download(url).await.map_err(|error| {
            let mut reason = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                reason = format!("{reason}: {inner}");
                cause = inner.source();
            }
            ListError::Http { reason }
        }),
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    File::open(path)?.take(MAX_SEED_LIST_BYTES as u64 + 1).read_to_end(&mut octets)?;
    Ok(octets)
}

async fn download(url: &Url) -> reqwest::Result<Vec<u8>> {
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(FETCH_TIMEOUT)
        .redirect(reqwest::redirect::Policy::limited(MAX_REDIRECTS))
        .no_proxy()
        .build()?;
    let answer = client.get(url.clone()).send().await?.error_for_status()?;
    let (mut octets, mut body) = (Vec::new(), answer.bytes_stream());
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        let room = (MAX_SEED_LIST_BYTES + 1).saturating_sub(octets.len());
        octets.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if octets.len() > MAX_SEED_LIST_BYTES {
            break;
        }
    }
    Ok(octets)
}

/// The last good lists, one file for each source.
#[derive(Debug, Clone)]
pub struct ListCache {
    folder: PathBuf,
    keys: Vec<SeedListKey>,
}

impl ListCache {
    /// In this folder, of lists that one of `keys` has signed.
    #[must_use]
    pub fn new(folder: PathBuf, keys: Vec<SeedListKey>) -> Self {
        Self { folder, keys }
    }

    fn file(&self, source: &ListSource) -> PathBuf {
        let name = blake3::hash(source.to_string().as_bytes()).to_hex();
        self.folder.join(format!("{}.toml", &name[..32]))
    }

    /// The last good list of a source, in force or not.
    #[must_use]
    pub fn kept(&self, source: &ListSource) -> Option<SeedList> {
        let octets = read_bounded(&self.file(source)).ok()?;
        SeedList::verify(&octets, &self.keys).ok()
    }

    /// The addresses of the last good list, if it is still in force.
    ///
    /// # Errors
    /// [`SeedListError::Expired`].
    pub fn offer(&self, source: &ListSource, now: u64) -> Result<Option<Offer>, SeedListError> {
        let Some(list) = self.kept(source) else { return Ok(None) };
        list.check_current(now)?;
        Ok(Some(Offer::from_texts(list.addresses)))
    }

    /// Takes a list in, if it is believed, in force, and no older than the last.
    ///
    /// # Errors
    /// See [`ListError`].
    pub fn take(&self, source: &ListSource, octets: &[u8], now: u64) -> Result<Offer, ListError> {
        let offer = self.judge(source, octets, now)?;
        if let Err(error) = self.keep(source, octets) {
            tracing::warn!("cannot keep the list {source}: {error}");
        }
        Ok(offer)
    }

    /// What would be taken in, without doing so.
    ///
    /// # Errors
    /// See [`ListError`].
    pub fn judge(&self, source: &ListSource, octets: &[u8], now: u64) -> Result<Offer, ListError> {
        let list = SeedList::verify(octets, &self.keys)?;
        list.check_current(now)?;
        match self.kept(source) {
            Some(kept) if kept == list => {}
            Some(kept) if kept.sequence == list.sequence => {
                return Err(ListError::SameNumber { sequence: list.sequence });
            }
            Some(kept) => list.check_follows(kept.sequence)?,
            None => {}
        }
        Ok(Offer::from_texts(list.addresses))
    }

    fn keep(&self, source: &ListSource, octets: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let path = self.file(source);
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(octets)?;
        file.sync_all()?;
        fs::rename(fresh, path)
    }
}

/// Seconds since 1970 by the machine's clock.
#[must_use]
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use narswarm_protocol::seed_list::SeedListSigner;

    const NOW: u64 = 1_800_000_000;

    fn signed(sequence: u64, expires: u64, port: u16) -> Vec<u8> {
        let peer = libp2p::PeerId::random();
        let address = format!("/ip4/192.0.2.1/tcp/{port}/p2p/{peer}");
        let list = SeedList::new(sequence, expires, vec![address]).expect("a list");
        SeedListSigner::new(&[1; 32]).sign(&list).into_bytes()
    }

    fn cache(folder: &Path) -> ListCache {
        let keys = vec![SeedListSigner::new(&[1; 32]).key()];
        ListCache::new(folder.join("seed-lists"), keys)
    }

    #[test]
    fn only_later_lists_replace_the_last() {
        let folder = tempfile::tempdir().expect("a folder");
        let (cache, source) =
            (cache(folder.path()), "https://a.example/list".parse().expect("url"));
        let (old, new) = (signed(1, NOW + 10, 1), signed(2, NOW + 10, 2));
        assert_eq!(cache.take(&source, &old, NOW).expect("the first").addresses.len(), 1);
        assert!(cache.take(&source, &old, NOW).is_ok(), "the same again");
        let twin = cache.take(&source, &signed(1, NOW + 10, 9), NOW).expect_err("a twin");
        assert!(matches!(twin, ListError::SameNumber { sequence: 1 }), "{twin}");
        cache.take(&source, &new, NOW).expect("a later one");
        let replayed = cache.take(&source, &old, NOW).expect_err("an old one");
        assert!(matches!(replayed, ListError::Refused(SeedListError::Replayed { .. })));
        // Another source has its own numbers.
        let other = "https://b.example/list".parse().expect("url");
        assert!(cache.take(&other, &old, NOW).is_ok());
        assert_eq!(cache.kept(&source).expect("kept").sequence, 2);
    }

    #[test]
    fn an_expired_list_is_not_used_but_still_bars_older_ones() {
        let folder = tempfile::tempdir().expect("a folder");
        let (cache, source) = (cache(folder.path()), "list.toml".parse().expect("a file"));
        cache.take(&source, &signed(5, NOW + 10, 1), NOW).expect("in force");
        assert!(cache.offer(&source, NOW + 9).expect("in force").is_some());
        assert!(matches!(cache.offer(&source, NOW + 10), Err(SeedListError::Expired { .. })));
        let old = cache.take(&source, &signed(4, NOW + 99, 1), NOW + 20).expect_err("older");
        assert!(matches!(old, ListError::Refused(SeedListError::Replayed { .. })), "{old}");
        let late = cache.take(&source, &signed(6, NOW, 1), NOW).expect_err("expired");
        assert!(matches!(late, ListError::Refused(SeedListError::Expired { .. })), "{late}");
    }

    #[test]
    fn what_lies_garbled_on_disk_counts_as_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (cache, source) = (cache(folder.path()), "list.toml".parse().expect("a file"));
        cache.take(&source, &signed(5, NOW + 10, 1), NOW).expect("in force");
        fs::write(cache.file(&source), "garbage").expect("written");
        assert!(cache.kept(&source).is_none());
        cache.take(&source, &signed(1, NOW + 10, 1), NOW).expect("a new beginning");
    }

    #[test]
    fn sources_are_urls_or_files() {
        let parse = |text: &str| text.parse::<ListSource>();
        assert!(matches!(parse("https://a.example/list"), Ok(ListSource::Url(_))));
        assert!(matches!(parse("lists/a.toml"), Ok(ListSource::File(_))));
        assert_eq!(parse("file:///etc/list"), Ok(ListSource::File("/etc/list".into())));
        assert!(parse("ftp://a.example/list").is_err() && parse("").is_err());
    }
}
