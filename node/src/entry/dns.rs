//! Entry nodes by name: the TXT records of `_dnsaddr.NAME`, as libp2p writes them:
//! `dnsaddr=/dns/entry.example.org/tcp/8711/p2p/12D3Koo…`.
//!
//! Whoever answers for a name, or on the way to it, may say anything. So every address has to name
//! its peer, numbers and lengths are bounded, and a name that leads to itself ends.

use super::Offer;
use crate::net::resolver::{self, ResolverError};
use hickory_resolver::TokioResolver;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use libp2p::multiaddr::Protocol;
use narswarm_protocol::limits::{MAX_DNSADDR_LOOKUPS, MAX_SEED_LIST_ADDRESS_BYTES};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Why a name gives no entry nodes.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Names can't be resolved at all.
    #[error(transparent)]
    Setup(#[from] ResolverError),
    /// The server gave no records.
    #[error("no TXT records of _dnsaddr.{name}: {reason}")]
    Lookup {
        /// The name.
        name: String,
        /// What the resolver says.
        reason: String,
    },
}

/// Asks for the records of names.
#[derive(Clone)]
pub struct Names(TokioResolver);

impl Names {
    /// Asks this server, or those of the system.
    ///
    /// # Errors
    /// [`DnsError::Setup`].
    pub fn new(server: Option<SocketAddr>) -> Result<Self, DnsError> {
        let (config, options) = resolver::config(server)?;
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let resolver = builder
            .with_options(options)
            .build()
            .map_err(|error| DnsError::Lookup { name: String::new(), reason: error.to_string() })?;
        Ok(Self(resolver))
    }

    /// The addresses behind a name, and behind the names that it leads to.
    ///
    /// # Errors
    /// [`DnsError::Lookup`] of the name itself; a failure further on only leaves out what is there.
    pub async fn dnsaddr(&self, name: &str) -> Result<Offer, DnsError> {
        let mut offer = Offer::from_texts(self.records(name).await?);
        let mut seen = BTreeSet::from([name.to_owned()]);
        loop {
            let at = offer.addresses.iter().position(|address| further(address).is_some());
            let Some(at) = at else { return Ok(offer) };
            let address = offer.addresses.swap_remove(at);
            let Some(next) = further(&address) else { continue };
            if seen.len() == MAX_DNSADDR_LOOKUPS || !seen.insert(next.clone()) {
                continue;
            }
            match self.records(&next).await {
                // As libp2p does: what doesn't end as the address that led here isn't meant.
                Ok(texts) => {
                    let rest: libp2p::Multiaddr = address.iter().skip(1).collect();
                    let mut found = Offer::from_texts(texts);
                    found.addresses.retain(|found| found.ends_with(&rest));
                    offer.merge(found);
                }
                Err(error) => tracing::debug!(%error, "a name leads on to nothing"),
            }
        }
    }

    async fn records(&self, name: &str) -> Result<Vec<String>, DnsError> {
        let lookup = self.0.txt_lookup(format!("_dnsaddr.{name}.")).await;
        let lookup = lookup.map_err(|error| DnsError::Lookup {
            name: name.to_owned(),
            reason: error.to_string(),
        })?;
        let texts = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::TXT(text) => Some(text.txt_data.concat()),
            _ => None,
        });
        let longest = MAX_SEED_LIST_ADDRESS_BYTES + "dnsaddr=".len();
        let texts = texts.filter(|octets| octets.len() <= longest);
        let texts = texts.filter_map(|octets| String::from_utf8(octets).ok());
        Ok(texts.filter_map(|text| text.strip_prefix("dnsaddr=").map(str::to_owned)).collect())
    }
}

/// The name that an address leads on to.
fn further(address: &libp2p::Multiaddr) -> Option<String> {
    match address.iter().next()? {
        Protocol::Dnsaddr(name) => Some(name.into_owned()),
        _ => None,
    }
}

/// The name in a setting, which may be written as a name or as a `/dnsaddr/` address.
///
/// # Errors
/// What is neither.
pub fn parse_name(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("/dnsaddr/").unwrap_or(text).trim_end_matches('/');
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > 240 || !name.chars().all(sound) {
        return Err(format!("{text:?} is no name to look for, such as entry.example.org"));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_plainly_or_as_addresses() {
        assert_eq!(parse_name("entry.example.org").as_deref(), Ok("entry.example.org"));
        assert_eq!(parse_name("/dnsaddr/entry.example.org").as_deref(), Ok("entry.example.org"));
        for wrong in ["", "/dnsaddr/", "/ip4/127.0.0.1", "a b", &"a".repeat(300)] {
            assert!(parse_name(wrong).is_err(), "{wrong}");
        }
    }
}
