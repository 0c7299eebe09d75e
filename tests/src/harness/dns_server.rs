//! A name server for TXT records on the loopback, which can lie, cut off and keep silent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::UdpSocket;
use tokio_util::task::AbortOnDropHandle;

/// The type and class of TXT records of the internet (RFC 1035).
const TXT: [u8; 4] = [0, 16, 0, 1];

/// How a name is answered.
#[derive(Debug, Clone)]
pub enum Answer {
    /// With these texts.
    Texts(Vec<String>),
    /// That there is no such name.
    NoName,
    /// Not at all.
    Silence,
    /// With octets that are no answer.
    Garbage,
}

/// A name server that lasts until it is dropped.
pub struct DnsServer {
    address: SocketAddr,
    names: Arc<Mutex<BTreeMap<String, Answer>>>,
    _serving: AbortOnDropHandle<()>,
}

impl DnsServer {
    /// Knows no names yet.
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("an address");
        let names = Arc::<Mutex<BTreeMap<String, Answer>>>::default();
        let known = names.clone();
        let serving = tokio::spawn(async move {
            let mut query = [0; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut query).await {
                let Some((name, end)) = question(&query[..length]) else { continue };
                let answer = {
                    let known = known.lock().unwrap_or_else(PoisonError::into_inner);
                    known.get(&name).cloned().unwrap_or(Answer::NoName)
                };
                if let Some(octets) = encode(&query[..end], &answer) {
                    let _ = socket.send_to(&octets, client).await;
                }
            }
        });
        Self { address, names, _serving: AbortOnDropHandle::new(serving) }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers the `_dnsaddr` records of a name so.
    pub fn set(&self, name: &str, answer: Answer) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(format!("_dnsaddr.{name}"), answer);
    }

    /// Names these entry nodes.
    pub fn name_nodes<T: AsRef<str>>(&self, name: &str, addresses: impl IntoIterator<Item = T>) {
        let texts = addresses.into_iter().map(|address| format!("dnsaddr={}", address.as_ref()));
        self.set(name, Answer::Texts(texts.collect()));
    }
}

/// The name in a query's only question, in small letters, and where the question ends.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at + 4));
        }
        let label = query.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        at += length;
    }
}

/// The answer to a query that ends with its question.
fn encode(query: &[u8], answer: &Answer) -> Option<Vec<u8>> {
    let none = Vec::new();
    let (code, texts) = match answer {
        Answer::Silence => return None,
        Answer::Garbage => return Some(vec![0xff; 40]),
        Answer::NoName => (3, &none),
        Answer::Texts(texts) => (0, texts),
    };
    let count = u16::try_from(texts.len()).expect("so many fit").to_be_bytes();
    let mut octets = query.get(..2)?.to_vec();
    octets.extend([0x85, 0x80 | code, 0, 1]);
    octets.extend(count);
    octets.extend([0, 0, 0, 0]);
    octets.extend(query.get(12..)?);
    for text in texts {
        octets.extend([0xc0, 12]);
        octets.extend(TXT);
        octets.extend(60u32.to_be_bytes());
        let parts: Vec<&[u8]> = text.as_bytes().chunks(255).collect();
        let length = u16::try_from(text.len() + parts.len()).expect("it fits");
        octets.extend(length.to_be_bytes());
        for part in parts {
            octets.push(part.len() as u8);
            octets.extend(part);
        }
    }
    Some(octets)
}
