//! Making signatures that Guix accepts: for demonstrations, tests and small private mirrors.
//!
//! A build farm should sign with Guix itself, whose keys live with the system's administrator.
//!
//! What touches the secret key or a nonce is curve25519-dalek's arithmetic, which takes the same
//! time whatever they are; the rest works on the signature's public values. Secrets are not wiped
//! from memory, and nothing here resists an attacker who induces faults.

use super::ecdsa;
use crate::acl::PublicKey;
use crate::sexp::{self, Sexp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use curve25519_dalek::{EdwardsPoint, Scalar};
use sha2::{Digest, Sha256, Sha512};
use std::fmt;

/// Keeps what is derived from a seed apart from every other use of that seed.
const KEY_DOMAIN: &[u8] = b"narswarm 1 narinfo signing key";

/// Keeps what is derived for nonces apart from the key itself.
const NONCE_DOMAIN: &[u8] = b"narswarm 1 narinfo signing nonce";

/// A secret key on curve Ed25519, for signatures of Guix's kind.
#[derive(Clone)]
pub struct SigningKey {
    secret: Scalar,
    /// From which, with the digest, each nonce is derived.
    nonce_seed: [u8; 64],
    public: PublicKey,
}

impl SigningKey {
    /// The key that belongs to a seed, which must be 32 random octets and be kept secret.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let derive = |domain: &[u8]| -> [u8; 64] {
            Sha512::new().chain_update(domain).chain_update(seed).finalize().into()
        };
        let secret = Scalar::from_bytes_mod_order_wide(&derive(KEY_DOMAIN));
        let point = EdwardsPoint::mul_base(&secret);
        let public = PublicKey::from_octets(point.compress().as_bytes())
            .expect("only a secret of zero, as likely as to guess a key, gives an unusable point");
        Self { secret, nonce_seed: derive(NONCE_DOMAIN), public }
    }

    /// The key that others put in their ACL.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// The text of a `signing-key.pub` file, as `guix archive --authorize` reads it.
    #[must_use]
    pub fn public_key_sexp(&self) -> String {
        sexp::latin1_text(&self.public.to_sexp().to_advanced())
    }

    /// The value of the `Signature` field below `signed_bytes`: `1;HOST;BASE64`, as `guix publish`
    /// writes it. The same text and key always give the same signature.
    ///
    /// A `host` with a semicolon or a line end gives a field that nobody reads.
    #[must_use]
    pub fn sign_narinfo(&self, signed_bytes: &[u8], host: &str) -> String {
        let signature = self.sign_digest(&Sha256::digest(signed_bytes).into());
        let text = sexp::latin1_text(&signature.to_advanced());
        format!("1;{host};{}", STANDARD.encode(text))
    }

    /// The `(signature …)` of a text with this SHA-256.
    #[must_use]
    pub fn sign_digest(&self, digest: &[u8; 32]) -> Sexp {
        let (r, s) = self.numbers(digest);
        let tagged = |name: &str, rest: &[Sexp]| Sexp::list([&[Sexp::atom(name)], rest].concat());
        let hash = tagged("hash", &[Sexp::atom("sha256"), Sexp::atom(digest)]);
        let data = tagged("data", &[tagged("flags", &[Sexp::atom("rfc6979")]), hash]);
        let values = [tagged("r", &[big_endian(&r)]), tagged("s", &[big_endian(&s)])];
        let sig_val = tagged("sig-val", &[tagged("ecdsa", &values)]);
        tagged("signature", &[data, sig_val, self.public.to_sexp()])
    }

    /// r and s. The nonce is a hash of secret and digest, in the spirit of RFC 6979: it needs no
    /// randomness, never repeats for two digests, and 512 bits leave no measurable bias modulo n.
    fn numbers(&self, digest: &[u8; 32]) -> (Scalar, Scalar) {
        let z = ecdsa::hash(digest);
        let mut attempt: u64 = 0;
        loop {
            let wide = Sha512::new()
                .chain_update(self.nonce_seed)
                .chain_update(digest)
                .chain_update(attempt.to_le_bytes())
                .finalize();
            let nonce = Scalar::from_bytes_mod_order_wide(&wide.into());
            let r = ecdsa::x_modulo_order(&EdwardsPoint::mul_base(&nonce));
            let s = nonce.invert() * (z + r * self.secret);
            // Zero is no signature; it comes about as often as a guessed key.
            if r != Scalar::ZERO && s != Scalar::ZERO {
                return (r, s);
            }
            attempt += 1;
        }
    }
}

/// A number without its leading zeros, as libgcrypt writes it.
fn big_endian(number: &Scalar) -> Sexp {
    let mut octets = number.to_bytes().to_vec();
    while octets.last() == Some(&0) {
        octets.pop();
    }
    octets.reverse();
    Sexp::Atom(octets)
}

impl fmt::Debug for SigningKey {
    /// Names the public key only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acl::Acl;
    use crate::signature::Signature;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_signed_verifies_and_nothing_else(
            seed: [u8; 32], text: Vec<u8>, bit in 0..256usize,
        ) {
            let key = SigningKey::from_seed(seed);
            let acl = Acl::parse(key.public_key_sexp().as_bytes()).expect("own key");
            let field = key.sign_narinfo(&text, "example.org");
            let signature = Signature::parse(&field).expect("own signature");
            let mut digest: [u8; 32] = Sha256::digest(&text).into();
            prop_assert_eq!(signature.verify(&digest, &acl), Ok(key.public_key()));
            prop_assert_eq!(field, key.sign_narinfo(&text, "example.org"));
            digest[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(signature.verify(&digest, &acl).is_err());
            let (r, s) = key.numbers(&digest);
            let (r, s) = (r.to_bytes(), (-s).to_bytes());
            let reversed = |mut octets: [u8; 32]| { octets.reverse(); octets };
            let claim =
                ecdsa::Claim::new(key.public_key(), &digest, &reversed(r), &reversed(s));
            let claim = claim.expect("both are in range");
            prop_assert_eq!(ecdsa::verify_all(&[claim]), [false], "the negated s must not verify");
        }
    }

    #[test]
    fn debugging_shows_no_secret() {
        let key = SigningKey::from_seed([3; 32]);
        assert_eq!(format!("{key:?}"), format!("SigningKey({})", key.public_key().id()));
    }
}
