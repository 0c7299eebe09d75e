//! Writing s-expressions in libgcrypt's advanced form, octet for octet (`gcry_sexp_sprint`): the
//! indentation, and the choice between token, quoted string and hexadecimal.

use super::Sexp;
use std::fmt::Write as _;

/// Octets that libgcrypt writes with a backslash and a letter or themselves.
const ESCAPES: [(u8, &str); 9] = [
    (0x08, "\\b"),
    (b'\t', "\\t"),
    (0x0b, "\\v"),
    (b'\n', "\\n"),
    (0x0c, "\\f"),
    (b'\r', "\\r"),
    (b'"', "\\\""),
    (b'\'', "\\'"),
    (b'\\', "\\\\"),
];

/// The text of `sexp`, with the newline that libgcrypt puts at its end.
pub(super) fn advanced(sexp: &Sexp) -> Vec<u8> {
    let mut out = Vec::new();
    write(sexp, 0, true, &mut out);
    out.push(b'\n');
    out
}

/// `last` says whether the enclosing list, or the text, ends after this expression.
fn write(sexp: &Sexp, depth: usize, last: bool, out: &mut Vec<u8>) {
    match sexp {
        Sexp::Atom(octets) => {
            write_atom(octets, out);
            if !last {
                out.push(b' ');
            }
        }
        Sexp::List(items) => {
            if depth > 0 {
                new_line(depth, out);
            }
            out.push(b'(');
            for (index, item) in items.iter().enumerate() {
                write(item, depth + 1, index + 1 == items.len(), out);
                // The end of an inner list begins a line, unless the next list does so itself.
                let next_is_list = matches!(items.get(index + 1), Some(Sexp::List(_)));
                if matches!(item, Sexp::List(_)) && !next_is_list {
                    new_line(depth + 1, out);
                }
            }
            out.push(b')');
        }
    }
}

fn new_line(indentation: usize, out: &mut Vec<u8>) {
    out.push(b'\n');
    out.resize(out.len() + indentation, b' ');
}

fn write_atom(octets: &[u8], out: &mut Vec<u8>) {
    if is_binary(octets) {
        let mut text = String::with_capacity(octets.len() * 2 + 2);
        text.push('#');
        for octet in octets {
            write!(text, "{octet:02X}").expect("a string takes whatever is written to it");
        }
        text.push('#');
        out.extend(text.into_bytes());
    } else if is_token(octets) {
        out.extend(octets);
    } else {
        write_quoted(octets, out);
    }
}

fn write_quoted(octets: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for &octet in octets {
        if let Some((_, escape)) = ESCAPES.iter().find(|(escaped, _)| *escaped == octet) {
            out.extend(escape.as_bytes());
        } else if octet == 0 {
            out.extend(b"\\x00");
        } else {
            out.push(octet);
        }
    }
    out.push(b'"');
}

/// Libgcrypt's `suitable_encoding`: control characters and 0x7f to 0xa0 make a string binary, as
/// does a first octet that looks like the sign or the padding of a number. NUL further on does
/// not, by an accident of `strchr`.
fn is_binary(octets: &[u8]) -> bool {
    let control = |octet: u8| {
        matches!(octet, 0x01..0x20 | 0x7f..=0xa0) && !ESCAPES.iter().any(|(e, _)| *e == octet)
    };
    match octets.first() {
        None => false,
        Some(&first) => first == 0 || first >= 0x80 || octets.iter().any(|&o| control(o)),
    }
}

fn is_token(octets: &[u8]) -> bool {
    octets.first().is_some_and(|first| !first.is_ascii_digit())
        && octets.iter().all(|o| o.is_ascii_alphanumeric() || b"-./_:*+=".contains(o))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_looks_as_libgcrypt_writes_it() {
        let text = "(public-key \n (ecc \n  (curve Ed25519)\n  (q #8D156F#)\n  )\n )\n";
        let key = Sexp::parse(text.as_bytes()).expect("key");
        assert_eq!(String::from_utf8(advanced(&key)).expect("text"), text);
    }

    #[test]
    fn textual_octets_are_quoted() {
        let print = |octets: &[u8]| advanced(&Sexp::atom(octets));
        assert_eq!(print(b"Ed25519"), b"Ed25519\n");
        assert_eq!(print(b"2fold"), b"\"2fold\"\n");
        assert_eq!(print(b""), b"\"\"\n");
        assert_eq!(print(b"a\n\xc8\0"), b"\"a\\n\xc8\\x00\"\n");
        assert_eq!(print(b"a\x01"), b"#6101#\n");
        assert_eq!(print(b"\xc8a"), b"#C861#\n");
        assert_eq!(print(b"\0a"), b"#0061#\n");
    }
}
