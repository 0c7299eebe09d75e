//! The `Signature` field of a narinfo, judged as Guix judges it (`guix/narinfo.scm`,
//! `guix/pki.scm`), and as strict as needed to never pass on what would make it throw.
//!
//! The order of the verdicts is Guix's: is the key authorised, is this the hash that was signed,
//! does the signature verify. The algorithm is ECDSA over curve Ed25519, not EdDSA; see
//! `ecdsa.rs`. The signature's text is malleable: never use it as an identity.

mod ecdsa;
mod multiples;
mod sign;

pub(crate) use ecdsa::{Claim, verify_all};
pub(crate) use multiples::Multiples;
pub use sign::SigningKey;

use crate::acl::{Acl, PublicKey};
use crate::limits;
use crate::sexp::{self, Sexp, SexpError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Why the value of a `Signature` field is no signature. Guix then calls the narinfo unsigned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// Far longer than any signature.
    #[error(
        "the field has {octets} octets, more than {limit}",
        limit = limits::MAX_SIGNATURE_FIELD_BYTES
    )]
    TooLong {
        /// Its length.
        octets: usize,
    },
    /// Not three parts between semicolons.
    #[error("the field is not of the form 1;HOST;BASE64")]
    Form,
    /// Another version than 1, the only one there is.
    #[error("the field's version is not 1")]
    Version,
    /// The last part is not base64.
    #[error("the field's last part is not base64")]
    Base64,
    /// The base64 holds no text whose characters stand for octets.
    #[error("the signature is not the text of an s-expression")]
    Text,
    /// The text is no s-expression.
    #[error("the signature is malformed: {0}")]
    Sexp(#[from] SexpError),
}

/// Why a signature is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It says not what was signed or by which key.
    #[error("the signature lacks its data or its public key")]
    Corrupt,
    /// Its key is not in the access control list.
    #[error("the signature was made with a key that is not authorised{}", shown(.key))]
    UnauthorizedKey {
        /// The key, if it is one on curve Ed25519.
        key: Option<PublicKey>,
    },
    /// Something else was signed than this text.
    #[error("the signed text is not the text that was signed")]
    HashMismatch,
    /// An authorised key, but a form of signature that makes Guix throw rather than refuse.
    #[error("the signature is of a form that guix does not take: {0}")]
    Unsupported(Unsupported),
    /// The mathematics don't work out.
    #[error("the signature is not one by the key it names")]
    Invalid,
}

/// What about a signature guix does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// The flags are not those of a deterministic ECDSA signature.
    #[error("its flags are not (flags rfc6979)")]
    Flags,
    /// The hash is not labelled sha256, or is not alone with its label.
    #[error("its hash is not (hash sha256 …)")]
    HashLabel,
    /// A value stands beside the hash.
    #[error("it has both a hash and a value")]
    Value,
    /// The values are not `(ecdsa (r …) (s …))`.
    #[error("its values are not (ecdsa (r …) (s …))")]
    Values,
}

fn shown(key: &Option<PublicKey>) -> String {
    key.as_ref().map_or_else(String::new, |key| format!(" ({})", key.id()))
}

/// A well-formed signature of something by somebody, believed by nobody yet.
#[derive(Debug, Clone)]
pub struct Signature {
    host: String,
    expression: Sexp,
}

impl Signature {
    /// Reads `1;HOST;BASE64`.
    ///
    /// # Errors
    /// See [`FieldError`]. Unlike Guix, which tolerates them, this refuses other spellings of
    /// version 1, unpadded base64, and text after the s-expression.
    pub fn parse(field: &str) -> Result<Self, FieldError> {
        if field.len() > limits::MAX_SIGNATURE_FIELD_BYTES {
            return Err(FieldError::TooLong { octets: field.len() });
        }
        let mut parts = field.split(';');
        let (Some(version), Some(host), Some(base64), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(FieldError::Form);
        };
        if version != "1" {
            return Err(FieldError::Version);
        }
        let text = STANDARD.decode(base64).map_err(|_| FieldError::Base64)?;
        let text = String::from_utf8(text).map_err(|_| FieldError::Text)?;
        let octets = sexp::latin1_octets(&text).ok_or(FieldError::Text)?;
        // Guix hands the text over as a C string, which ends at the first NUL.
        if octets.contains(&0) {
            return Err(FieldError::Text);
        }
        Ok(Self { host: host.to_owned(), expression: Sexp::parse(&octets)? })
    }

    /// The host that the signer says it is. Nothing vouches for it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Tells which key of the list made this signature of a text with this SHA-256.
    ///
    /// # Errors
    /// See [`SignatureError`], whose kinds are Guix's verdicts.
    pub fn verify<'a>(
        &self,
        digest: &[u8; 32],
        acl: &'a Acl,
    ) -> Result<&'a PublicKey, SignatureError> {
        let claim = self.claim(digest, acl)?;
        let key = claim.key();
        if verify_all(&[claim]) == [true] { Ok(key) } else { Err(SignatureError::Invalid) }
    }

    /// What remains to be verified of this signature of a text with this SHA-256: the numbers, best
    /// with many others at once.
    pub(crate) fn claim<'a>(
        &self,
        digest: &[u8; 32],
        acl: &'a Acl,
    ) -> Result<Claim<'a>, SignatureError> {
        let find = |name| self.expression.find_list(name);
        let (Some(data), Some(key)) = (find("data"), find("public-key")) else {
            return Err(SignatureError::Corrupt);
        };
        let Some(authorised) = acl.find(key) else {
            return Err(SignatureError::UnauthorizedKey { key: PublicKey::from_sexp(key).ok() });
        };
        check_data(data, digest)?;
        let (r, s) = values(find("sig-val").ok_or(SignatureError::Invalid)?)?;
        Claim::new(authorised, digest, r, s).ok_or(SignatureError::Invalid)
    }
}

/// Whether `(data (flags rfc6979) (hash sha256 …))` is of this digest, and of the form that
/// libgcrypt takes for ECDSA.
fn check_data(data: &Sexp, digest: &[u8; 32]) -> Result<(), SignatureError> {
    let Some([label, value, rest @ ..]) = data.find("hash") else {
        return Err(SignatureError::HashMismatch);
    };
    if value.as_atom() != Some(&digest[..]) {
        return Err(SignatureError::HashMismatch);
    }
    let unsupported = |what| Err(SignatureError::Unsupported(what));
    let sha256 = label.as_atom().is_some_and(|label| label.eq_ignore_ascii_case(b"sha256"));
    if !sha256 || !rest.is_empty() {
        return unsupported(Unsupported::HashLabel);
    }
    if data.find("value").is_some() {
        return unsupported(Unsupported::Value);
    }
    // Both flags mean the same to whoever verifies. Without any, libgcrypt takes no hash.
    let known = |flag: &Sexp| matches!(flag.as_atom(), Some(b"rfc6979" | b"raw"));
    let flags = data.find("flags").unwrap_or_default();
    if flags.is_empty() || !flags.iter().all(known) {
        return unsupported(Unsupported::Flags);
    }
    Ok(())
}

/// `r` and `s` of `(sig-val (ecdsa (r …) (s …)))`.
fn values(sig_val: &Sexp) -> Result<(&[u8], &[u8]), SignatureError> {
    let algorithm = sig_val.tagged("sig-val").and_then(<[Sexp]>::first);
    let ecdsa = algorithm.filter(|values| values.tagged("ecdsa").is_some());
    let value = |name| ecdsa?.find(name)?.first()?.as_atom();
    match (value("r"), value("s")) {
        (Some(r), Some(s)) => Ok((r, s)),
        _ => Err(SignatureError::Unsupported(Unsupported::Values)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: [u8; 32] = [7; 32];

    fn field(expression: &str) -> String {
        format!("1;host;{}", STANDARD.encode(expression))
    }

    fn signed() -> (Acl, String) {
        let key = SigningKey::from_seed([1; 32]);
        let text = sexp::latin1_text(&key.sign_digest(&DIGEST).to_advanced());
        (Acl::from_iter([key.public_key().clone()]), text)
    }

    fn verdict(acl: &Acl, expression: &str) -> Result<(), SignatureError> {
        let signature = Signature::parse(&field(expression)).expect("well-formed");
        signature.verify(&DIGEST, acl).map(|_| ())
    }

    #[test]
    fn the_verdicts_come_in_guixs_order() {
        let (acl, text) = signed();
        assert_eq!(verdict(&acl, &text), Ok(()));
        let changed = |from: &str, to: &str| {
            assert!(text.contains(from), "{from} is not in {text}");
            verdict(&acl, &text.replacen(from, to, 1))
        };
        use SignatureError::*;
        assert_eq!(changed("(data", "(date"), Err(Corrupt));
        assert_eq!(changed("(public-key", "(public-kez"), Err(Corrupt));
        assert_eq!(changed("curve Ed25519", "curve ed25519"), Err(UnauthorizedKey { key: None }));
        assert_eq!(changed("(hash", "(hasj"), Err(HashMismatch));
        assert_eq!(changed("#07", "#08"), Err(HashMismatch));
        assert_eq!(changed("sha256", "sha224"), Err(Unsupported(self::Unsupported::HashLabel)));
        assert_eq!(changed("rfc6979", "eddsa"), Err(Unsupported(self::Unsupported::Flags)));
        assert_eq!(changed(" rfc6979", ""), Err(Unsupported(self::Unsupported::Flags)));
        assert_eq!(changed("(flags", "(flogs"), Err(Unsupported(self::Unsupported::Flags)));
        assert_eq!(
            changed("(hash", "(value #00#)(hash"),
            Err(Unsupported(self::Unsupported::Value))
        );
        assert_eq!(changed("ecdsa", "eddsa"), Err(Unsupported(self::Unsupported::Values)));
        assert_eq!(changed("(s ", "(t "), Err(Unsupported(self::Unsupported::Values)));
        assert_eq!(changed("(sig-val", "(sig-vel"), Err(Invalid));
        assert_eq!(changed("(r ", "(r ##)(r "), Err(Invalid));
        let unknown = Acl::guix_build_farms();
        let key = acl.keys().next().cloned();
        assert_eq!(verdict(&unknown, &text), Err(UnauthorizedKey { key }));
    }

    #[test]
    fn harmless_changes_of_the_text_are_tolerated() {
        let (acl, text) = signed();
        for (from, to) in [
            ("rfc6979", "raw"),
            ("rfc6979", "raw rfc6979"),
            ("sha256", "\"SHA256\""),
            ("\n", ""),
            ("(r #", "(r #0000"),
        ] {
            assert!(text.contains(from), "{from} is not in {text}");
            assert_eq!(verdict(&acl, &text.replace(from, to)), Ok(()), "{from} → {to}");
        }
    }

    #[test]
    fn malformed_fields_are_refused() {
        let refusal = |field: &str| Signature::parse(field).map(|_| ()).expect_err("malformed");
        assert_eq!(refusal(""), FieldError::Form);
        assert_eq!(refusal("1;host"), FieldError::Form);
        assert_eq!(refusal("1;host;KGEp;"), FieldError::Form);
        assert_eq!(refusal("2;host;KGEp"), FieldError::Version);
        assert_eq!(refusal("1 ;host;KGEp"), FieldError::Version);
        assert_eq!(refusal("1;host;KGEp "), FieldError::Base64);
        assert_eq!(refusal("1;host;KGEp_"), FieldError::Base64);
        assert_eq!(refusal("1;host;KGE"), FieldError::Base64);
        assert_eq!(refusal("1;host;/w=="), FieldError::Text);
        assert_eq!(refusal(&field("(a \u{100})")), FieldError::Text);
        assert_eq!(refusal(&field("(a)\0")), FieldError::Text);
        assert_eq!(refusal(&field("(a")), FieldError::Sexp(SexpError::Unfinished));
        let long = "1;".repeat(limits::MAX_SIGNATURE_FIELD_BYTES);
        assert_eq!(refusal(&long), FieldError::TooLong { octets: long.len() });
        assert_eq!(Signature::parse("1;a b;KGEp").expect("well-formed").host(), "a b");
    }
}
