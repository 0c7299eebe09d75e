//! What a seed signs of its filter.

use super::{Filter, FilterError, Shape};
use crate::voucher::VoucherSigner;
use ed25519_dalek::{Signature, VerifyingKey};

/// Separates these signatures from whatever else the same key signs.
const DOMAIN: &[u8] = b"narswarm 2026-11 filter of a seed\0";

/// Which filter it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterHead {
    /// Within a series, changes can be told; a number of the seed's choice.
    pub series: u64,
    /// Rises with each filter of the series.
    pub generation: u32,
    /// How fingerprints and parts are made.
    pub shape: Shape,
    /// Different fingerprints in it.
    pub items: u64,
    /// BLAKE3 of the whole filter's octets.
    pub hash: [u8; 32],
}

impl FilterHead {
    /// The head of a filter.
    #[must_use]
    pub fn of(filter: &Filter, series: u64, generation: u32) -> Self {
        let hash = blake3::hash(filter.octets()).into();
        Self { series, generation, shape: filter.shape(), items: filter.items(), hash }
    }

    /// Whether these octets are the filter that was meant.
    ///
    /// # Errors
    /// [`FilterError::Unsigned`].
    pub fn check(&self, octets: &[u8]) -> Result<(), FilterError> {
        let is_it = blake3::hash(octets) == self.hash;
        if is_it { Ok(()) } else { Err(FilterError::Unsigned) }
    }

    fn statement(&self) -> Vec<u8> {
        let mut octets = DOMAIN.to_vec();
        octets.extend(self.series.to_le_bytes());
        octets.extend(self.generation.to_le_bytes());
        octets.extend([self.shape.bits(), self.shape.part_bits()]);
        octets.extend(self.items.to_le_bytes());
        octets.extend(self.hash);
        octets
    }

    /// Signs it, with the key of the seed's peer id.
    #[must_use]
    pub fn sign(self, signer: &VoucherSigner) -> SignedHead {
        SignedHead { signature: signer.sign(&self.statement()), head: self }
    }
}

/// A head and somebody's signature, which may be false.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedHead {
    head: FilterHead,
    signature: [u8; 64],
}

impl SignedHead {
    /// What somebody says.
    #[must_use]
    pub fn new(head: FilterHead, signature: [u8; 64]) -> Self {
        Self { head, signature }
    }

    /// The signature as it travels.
    #[must_use]
    pub fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    /// What is said, by whom ever.
    #[must_use]
    pub fn unverified(&self) -> &FilterHead {
        &self.head
    }

    /// What is said, if it is signed by this Ed25519 key.
    ///
    /// # Errors
    /// [`FilterError::Unsigned`].
    pub fn verify(&self, key: &[u8; 32]) -> Result<FilterHead, FilterError> {
        let signature = Signature::from_bytes(&self.signature);
        let statement = self.head.statement();
        let is_signed = VerifyingKey::from_bytes(key)
            .is_ok_and(|key| key.verify_strict(&statement, &signature).is_ok());
        if is_signed { Ok(self.head) } else { Err(FilterError::Unsigned) }
    }
}
