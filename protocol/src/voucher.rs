//! Vouchers: a node's signed word that a nar has a root.
//!
//! Guix signs only the hash of the whole nar, so a piece list is a hint until the end. A node that
//! has hashed the whole knows; by Ed25519 (RFC 8032) it can tell others so, and anyone may pass its
//! word on. A voucher convinces only those who have been told by their user to believe its key.

use crate::hash::{NarHash, Root};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use std::fmt;

/// Separates vouchers from whatever else the same key signs: libp2p's handshakes begin otherwise.
const DOMAIN: &[u8] = b"narswarm 2026-11 voucher\0";

/// The Ed25519 public key of who vouches: the one that its libp2p peer id holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VoucherKey(pub [u8; 32]);

impl fmt::Debug for VoucherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VoucherKey({})", crate::base32::encode(&self.0))
    }
}

/// Somebody's word for a root, as it travels: unchecked, and bound to a nar and root only by
/// [`Voucher::is_valid`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voucher {
    key: VoucherKey,
    signature: [u8; 64],
}

impl Voucher {
    /// Octets of a voucher as it travels: key and signature.
    pub const BYTES: usize = 32 + 64;

    /// Who claims to vouch.
    #[must_use]
    pub fn key(&self) -> VoucherKey {
        self.key
    }

    /// Whether the key's owner has said that this nar has this root. Refuses what RFC 8032 leaves
    /// open: small-order keys, other encodings of a valid signature.
    #[must_use]
    pub fn is_valid(&self, nar_hash: &NarHash, root: &Root) -> bool {
        let signature = Signature::from_bytes(&self.signature);
        VerifyingKey::from_bytes(&self.key.0)
            .is_ok_and(|key| key.verify_strict(&statement(nar_hash, root), &signature).is_ok())
    }

    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut octets = [0; Self::BYTES];
        octets[..32].copy_from_slice(&self.key.0);
        octets[32..].copy_from_slice(&self.signature);
        octets
    }

    /// Reads what [`Voucher::to_bytes`] has written; any octets are a voucher, if not a valid one.
    #[must_use]
    pub fn from_bytes(octets: &[u8; Self::BYTES]) -> Self {
        let (mut key, mut signature) = ([0; 32], [0; 64]);
        key.copy_from_slice(&octets[..32]);
        signature.copy_from_slice(&octets[32..]);
        Self { key: VoucherKey(key), signature }
    }
}

/// Makes vouchers. Its secret is wiped when it is dropped, and never shown.
#[derive(Clone)]
pub struct VoucherSigner(SigningKey);

impl fmt::Debug for VoucherSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VoucherSigner({:?})", self.key())
    }
}

impl VoucherSigner {
    /// Signs with the key of this secret.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The key that others are to believe.
    #[must_use]
    pub fn key(&self) -> VoucherKey {
        VoucherKey(self.0.verifying_key().to_bytes())
    }

    /// Signs what begins with a domain of its own.
    pub(crate) fn sign(&self, statement: &[u8]) -> [u8; 64] {
        self.0.sign(statement).to_bytes()
    }

    /// Vouches for a root. Only for whoever has hashed the whole nar himself.
    #[must_use]
    pub fn vouch(&self, nar_hash: &NarHash, root: &Root) -> Voucher {
        let signature = self.0.sign(&statement(nar_hash, root)).to_bytes();
        Voucher { key: self.key(), signature }
    }
}

fn statement(nar_hash: &NarHash, root: &Root) -> Vec<u8> {
    [DOMAIN, nar_hash.as_bytes(), root.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAR: NarHash = NarHash([1; 32]);
    const ROOT: Root = Root([2; 32]);

    #[test]
    fn the_octets_of_vouchers_stay() {
        let signer = VoucherSigner::new(&[7; 32]);
        let voucher = signer.vouch(&NAR, &ROOT);
        // Of RFC 8032's scheme there is one signature for a key and message.
        let digest = blake3::hash(&voucher.to_bytes());
        let golden = "5693a68d0ec9e148ce6065d0ff11119fcc77018f9e5cb452db926d9510bb1b1b";
        assert_eq!(digest.to_hex().as_str(), golden);
    }

    #[test]
    fn a_voucher_is_for_one_nar_and_root() {
        let voucher = VoucherSigner::new(&[7; 32]).vouch(&NAR, &ROOT);
        assert!(voucher.is_valid(&NAR, &ROOT));
        assert!(!voucher.is_valid(&NarHash([3; 32]), &ROOT));
        assert!(!voucher.is_valid(&NAR, &Root([3; 32])));
        assert_eq!(Voucher::from_bytes(&voucher.to_bytes()), voucher);
    }

    #[test]
    fn a_key_of_small_order_vouches_for_nothing() {
        // The neutral element as key: for most implementations R = S·B is then valid for all.
        let mut octets = [0; Voucher::BYTES];
        octets[0] = 1;
        octets[32] = 1;
        assert!(!Voucher::from_bytes(&octets).is_valid(&NAR, &ROOT));
    }

    #[test]
    fn the_secret_is_not_shown() {
        let signer = VoucherSigner::new(&[7; 32]);
        let shown = format!("{signer:?}");
        assert!(!shown.contains(&crate::base32::encode(&[7; 32])), "{shown}");
        assert!(!shown.contains("7, 7"), "{shown}");
    }

    proptest! {
        #[test]
        fn no_other_octets_are_valid(at in 0..Voucher::BYTES, bit in 0..8u8) {
            let mut octets = VoucherSigner::new(&[7; 32]).vouch(&NAR, &ROOT).to_bytes();
            octets[at] ^= 1 << bit;
            prop_assert!(!Voucher::from_bytes(&octets).is_valid(&NAR, &ROOT));
        }

        #[test]
        fn any_octets_are_read(octets in proptest::array::uniform32(any::<[u8; 3]>())) {
            let flat: Vec<u8> = octets.concat();
            let flat: [u8; Voucher::BYTES] = flat.try_into().expect("96 octets");
            prop_assert!(!Voucher::from_bytes(&flat).is_valid(&NAR, &ROOT));
        }
    }
}
