//! Voucher keys as users write them: the peer id of the node that vouches, `12D3Koo…`, which holds
//! its Ed25519 key.

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey};
use narswarm_protocol::voucher::{VoucherKey, VoucherSigner};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The multihash code of an identifier that is its own content (multiformats' `identity`).
const IDENTITY: u64 = 0;

/// A peer whose vouchers are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VoucherPeer {
    peer: PeerId,
    key: VoucherKey,
}

/// Why a text names no peer that can vouch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VoucherPeerError {
    /// Not a peer id.
    #[error("{text:?} is no peer id; `narswarm status` on the node that vouches shows its own")]
    NoPeer {
        /// What was written.
        text: String,
    },
    /// A peer id that doesn't hold an Ed25519 key.
    #[error(
        "the peer id {peer} holds no Ed25519 key, so it can't vouch; one of narswarm begins with 12D3Koo"
    )]
    NoKey {
        /// The peer.
        peer: PeerId,
    },
}

impl VoucherPeer {
    /// The key in the peer id.
    #[must_use]
    pub fn key(&self) -> VoucherKey {
        self.key
    }
}

impl FromStr for VoucherPeer {
    type Err = VoucherPeerError;

    fn from_str(text: &str) -> Result<Self, VoucherPeerError> {
        let no_peer = |_| VoucherPeerError::NoPeer { text: text.to_owned() };
        let peer: PeerId = text.parse().map_err(no_peer)?;
        let key = key_of(&peer).ok_or(VoucherPeerError::NoKey { peer })?;
        Ok(Self { peer, key: VoucherKey(key) })
    }
}

/// The Ed25519 key in a peer id, if it holds one.
#[must_use]
pub fn key_of(peer: &PeerId) -> Option<[u8; 32]> {
    let id = peer.as_ref();
    let key = (id.code() == IDENTITY).then(|| PublicKey::try_decode_protobuf(id.digest()));
    Some(key?.ok()?.try_into_ed25519().ok()?.to_bytes())
}

impl TryFrom<String> for VoucherPeer {
    type Error = VoucherPeerError;

    fn try_from(text: String) -> Result<Self, VoucherPeerError> {
        text.parse()
    }
}

impl From<VoucherPeer> for String {
    fn from(peer: VoucherPeer) -> Self {
        peer.to_string()
    }
}

impl fmt::Display for VoucherPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.peer.fmt(f)
    }
}

/// Vouches with a node's own key; `None` if it isn't an Ed25519 one.
#[must_use]
pub fn signer(key: &Keypair) -> Option<VoucherSigner> {
    let secret = key.clone().try_into_ed25519().ok()?.secret();
    Some(VoucherSigner::new(secret.as_ref().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_says_the_key_that_its_node_signs_with() {
        let keypair = Keypair::generate_ed25519();
        let text = keypair.public().to_peer_id().to_string();
        let peer: VoucherPeer = text.parse().expect("a peer that can vouch");
        assert_eq!(peer.to_string(), text);
        assert_eq!(peer.key(), signer(&keypair).expect("an Ed25519 key").key());
    }

    #[test]
    fn what_is_no_such_peer_id_is_refused_with_what_to_do() {
        let error = "seed.example.org".parse::<VoucherPeer>().expect_err("a name");
        assert!(error.to_string().contains("narswarm status"), "{error}");
        // The peer id of an RSA key is a hash of it (libp2p's specification of peer ids).
        let rsa = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N".parse::<VoucherPeer>();
        assert!(matches!(rsa, Err(VoucherPeerError::NoKey { .. })), "{rsa:?}");
    }
}
