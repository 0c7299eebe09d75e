//! S-expressions as libgcrypt reads and writes them (`src/sexp.c`), the notation of Guix's keys,
//! signatures and access control lists.
//!
//! An expression is an octet string or a list. How a string was spelt (token, hexadecimal, quoted,
//! verbatim) is not part of its value, so that two expressions are equal exactly when Guix calls
//! them equal. Display hints, base64 and several expressions in a row are refused: no part of Guix
//! writes them.

mod print;
mod read;

pub use read::SexpError;

/// An octet string or a list of expressions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sexp {
    /// An octet string.
    Atom(Vec<u8>),
    /// A list.
    List(Vec<Sexp>),
}

impl Sexp {
    /// Reads one expression in the advanced or the canonical form, with white space around it.
    ///
    /// # Errors
    /// Refuses what is no such expression, what is longer than
    /// [`crate::limits::MAX_SEXP_BYTES`], and what nests deeper than
    /// [`crate::limits::MAX_SEXP_DEPTH`].
    pub fn parse(octets: &[u8]) -> Result<Self, SexpError> {
        read::read(octets)
    }

    /// The text that libgcrypt writes in its advanced form, final newline included.
    #[must_use]
    pub fn to_advanced(&self) -> Vec<u8> {
        print::advanced(self)
    }

    /// A list.
    pub fn list(items: impl Into<Vec<Sexp>>) -> Self {
        Self::List(items.into())
    }

    /// An octet string.
    pub fn atom(octets: impl AsRef<[u8]>) -> Self {
        Self::Atom(octets.as_ref().to_vec())
    }

    /// The octets, unless this is a list.
    #[must_use]
    pub fn as_atom(&self) -> Option<&[u8]> {
        match self {
            Self::Atom(octets) => Some(octets),
            Self::List(_) => None,
        }
    }

    /// The elements, unless this is an octet string.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Sexp]> {
        match self {
            Self::Atom(_) => None,
            Self::List(items) => Some(items),
        }
    }

    /// The elements after `name`, if this is a list that begins with it.
    #[must_use]
    pub fn tagged(&self, name: &str) -> Option<&[Sexp]> {
        let (head, rest) = self.as_list()?.split_first()?;
        (head.as_atom()? == name.as_bytes()).then_some(rest)
    }

    /// The elements after `name` of the first list that begins with it, this one included, in
    /// the order of the text: libgcrypt's `gcry_sexp_find_token`, by which Guix takes a signature
    /// apart.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&[Sexp]> {
        self.find_list(name)?.tagged(name)
    }

    /// Like [`Self::find`], but gives the whole list.
    #[must_use]
    pub fn find_list(&self, name: &str) -> Option<&Sexp> {
        if self.tagged(name).is_some() {
            return Some(self);
        }
        self.as_list()?.iter().find_map(|item| item.find_list(name))
    }
}

/// The octets of a text whose characters stand for octets (ISO 8859-1), the way in which Guile
/// carries libgcrypt's strings through UTF-8.
///
/// Nothing if a character stands for no octet.
#[must_use]
pub fn latin1_octets(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

/// The text whose characters stand for `octets` (ISO 8859-1).
#[must_use]
pub fn latin1_text(octets: &[u8]) -> String {
    octets.iter().map(|&octet| char::from(octet)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expressions() -> impl Strategy<Value = Sexp> {
        let atom = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            "[a-z0-9./_:*+=-]{0,12}".prop_map(String::into_bytes),
            "[ -~\"\\\\\n\t]{0,12}".prop_map(String::into_bytes),
        ]
        .prop_map(Sexp::Atom);
        atom.prop_recursive(5, 60, 6, |inner| {
            proptest::collection::vec(inner, 0..6).prop_map(Sexp::List)
        })
    }

    #[test]
    fn finds_the_first_list_of_a_name() {
        let sexp = Sexp::parse(b"(a (b (c 1)) (c 2) c)");
        // Digits begin a length, so a bare one is no token.
        assert!(sexp.is_err());
        let sexp = Sexp::parse(b"(a (b (c x)) (c y) c)").expect("expression");
        assert_eq!(sexp.find("c"), Some(&[Sexp::atom("x")][..]));
        assert_eq!(sexp.find("a").map(<[Sexp]>::len), Some(3));
        assert_eq!(sexp.find("x"), None, "an atom inside a list is not its name");
        assert_eq!(Sexp::atom("c").find("c"), None);
    }

    #[test]
    fn latin1_is_carried_through_utf8() {
        let octets: Vec<u8> = (0..=255).collect();
        assert_eq!(latin1_octets(&latin1_text(&octets)), Some(octets));
        assert_eq!(latin1_octets("\u{100}"), None);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(sexp in expressions()) {
            let text = sexp.to_advanced();
            prop_assert_eq!(Sexp::parse(&text), Ok(sexp));
        }

        #[test]
        fn no_octets_make_the_reader_panic(octets: Vec<u8>) {
            let _ = Sexp::parse(&octets);
        }

        #[test]
        fn nothing_like_an_expression_makes_the_reader_panic(
            text in "[()#\"0-9a-f:\\\\x \n|\\[\\]]{0,60}"
        ) {
            let _ = Sexp::parse(text.as_bytes());
        }
    }
}
