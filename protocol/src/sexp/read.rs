//! Reading s-expressions: tokens, `#hexadecimal#`, `"quoted"` and `LENGTH:verbatim` strings, the
//! two in the middle optionally with their decimal length in front.
//!
//! The reader keeps its own stack of open lists, so that nesting costs heap, not stack.

use super::Sexp;
use crate::limits;

/// Characters of a token besides letters and digits (libgcrypt's `tokenchars`).
const TOKEN_SPECIALS: &[u8] = b"-./_:*+=";

/// Why octets are no s-expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SexpError {
    /// Longer than any key, signature or ACL.
    #[error("s-expression of {octets} octets, more than {limit}", limit = limits::MAX_SEXP_BYTES)]
    TooLarge {
        /// Its length.
        octets: usize,
    },
    /// Nested deeper than any key, signature or ACL.
    #[error("s-expression nested deeper than {limit}", limit = limits::MAX_SEXP_DEPTH)]
    TooDeep,
    /// A character that begins nothing.
    #[error("octet {position} of the s-expression begins neither a list nor a string")]
    Character {
        /// Zero-based position.
        position: usize,
    },
    /// A closing parenthesis without an opening one.
    #[error("octet {position} of the s-expression closes a list that was never opened")]
    Unopened {
        /// Zero-based position.
        position: usize,
    },
    /// The text ends inside a list or a string.
    #[error("the s-expression ends before its last list or string does")]
    Unfinished,
    /// Something follows the expression.
    #[error("octet {position} follows the end of the s-expression")]
    Trailing {
        /// Zero-based position.
        position: usize,
    },
    /// A decimal length begins with zero, is too long, or isn't that of the string it precedes.
    #[error("the string length at octet {position} of the s-expression is wrong")]
    Length {
        /// Zero-based position.
        position: usize,
    },
    /// Characters between two `#` that are no hexadecimal digits, or an odd number of digits.
    #[error("octet {position} of the s-expression is no hexadecimal string")]
    Hexadecimal {
        /// Zero-based position.
        position: usize,
    },
    /// An unknown escape in a quoted string.
    #[error("the escape at octet {position} of the s-expression is unknown")]
    Escape {
        /// Zero-based position.
        position: usize,
    },
}

/// Reads exactly one expression.
pub(super) fn read(octets: &[u8]) -> Result<Sexp, SexpError> {
    if octets.len() > limits::MAX_SEXP_BYTES {
        return Err(SexpError::TooLarge { octets: octets.len() });
    }
    let mut reader = Reader { octets, position: 0 };
    let mut open: Vec<Vec<Sexp>> = Vec::new();
    loop {
        reader.skip_space();
        let done = match reader.peek().ok_or(SexpError::Unfinished)? {
            b'(' => {
                if open.len() == limits::MAX_SEXP_DEPTH {
                    return Err(SexpError::TooDeep);
                }
                reader.position += 1;
                open.push(Vec::new());
                continue;
            }
            b')' => {
                let items = open.pop().ok_or(SexpError::Unopened { position: reader.position })?;
                reader.position += 1;
                Sexp::List(items)
            }
            _ => Sexp::Atom(reader.string()?),
        };
        match open.last_mut() {
            Some(list) => list.push(done),
            None => {
                reader.skip_space();
                return match reader.peek() {
                    None => Ok(done),
                    Some(_) => Err(SexpError::Trailing { position: reader.position }),
                };
            }
        }
    }
}

struct Reader<'a> {
    octets: &'a [u8],
    position: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.octets.get(self.position).copied()
    }

    fn next(&mut self) -> Result<u8, SexpError> {
        let octet = self.peek().ok_or(SexpError::Unfinished)?;
        self.position += 1;
        Ok(octet)
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.position += 1;
        }
    }

    fn string(&mut self) -> Result<Vec<u8>, SexpError> {
        let start = self.position;
        let length = self.length()?;
        let octets = match self.next()? {
            b'#' => self.hexadecimal()?,
            b'"' => self.quoted()?,
            b':' if length.is_some() => self.verbatim(length.unwrap_or(0))?,
            _ if length.is_some() => return Err(SexpError::Length { position: start }),
            first if is_token(first) => self.token(start),
            _ => return Err(SexpError::Character { position: start }),
        };
        match length {
            Some(length) if length != octets.len() => Err(SexpError::Length { position: start }),
            _ => Ok(octets),
        }
    }

    /// The decimal length that may precede a string. No token begins with a digit.
    fn length(&mut self) -> Result<Option<usize>, SexpError> {
        let start = self.position;
        let mut length = None;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            let value = length.unwrap_or(0) * 10 + usize::from(digit - b'0');
            // Libgcrypt accepts no leading zero, not even for the empty string.
            if value == 0 || value > limits::MAX_SEXP_BYTES {
                return Err(SexpError::Length { position: start });
            }
            length = Some(value);
            self.position += 1;
        }
        Ok(length)
    }

    fn verbatim(&mut self, length: usize) -> Result<Vec<u8>, SexpError> {
        let octets = self.octets[self.position..].get(..length).ok_or(SexpError::Unfinished)?;
        self.position += length;
        Ok(octets.to_vec())
    }

    fn token(&mut self, start: usize) -> Vec<u8> {
        while self.peek().is_some_and(is_token) {
            self.position += 1;
        }
        self.octets[start..self.position].to_vec()
    }

    fn hexadecimal(&mut self) -> Result<Vec<u8>, SexpError> {
        let mut octets = Vec::new();
        let mut high: Option<u8> = None;
        loop {
            let position = self.position;
            let octet = self.next()?;
            if is_space(octet) {
                continue;
            }
            let digit = hex_digit(octet);
            match (octet, high, digit) {
                (b'#', None, _) => return Ok(octets),
                (_, None, Some(digit)) => high = Some(digit),
                (_, Some(value), Some(digit)) => {
                    octets.push(value << 4 | digit);
                    high = None;
                }
                _ => return Err(SexpError::Hexadecimal { position }),
            }
        }
    }

    fn quoted(&mut self) -> Result<Vec<u8>, SexpError> {
        let mut octets = Vec::new();
        loop {
            match self.next()? {
                b'"' => return Ok(octets),
                b'\\' => octets.extend(self.escape()?),
                octet => octets.push(octet),
            }
        }
    }

    /// What follows a backslash; nothing for an escaped line end, which continues the string.
    fn escape(&mut self) -> Result<Option<u8>, SexpError> {
        let position = self.position;
        Ok(Some(match self.next()? {
            b'b' => 0x08,
            b't' => b'\t',
            b'v' => 0x0b,
            b'n' => b'\n',
            b'f' => 0x0c,
            b'r' => b'\r',
            octet @ (b'"' | b'\'' | b'\\') => octet,
            b'x' => {
                let (high, low) = (hex_digit(self.next()?), hex_digit(self.next()?));
                let (Some(high), Some(low)) = (high, low) else {
                    return Err(SexpError::Escape { position });
                };
                high << 4 | low
            }
            first @ b'0'..=b'3' => {
                let (second, third) = (self.next()?, self.next()?);
                if !matches!((second, third), (b'0'..=b'7', b'0'..=b'7')) {
                    return Err(SexpError::Escape { position });
                }
                (first - b'0') << 6 | (second - b'0') << 3 | (third - b'0')
            }
            line_end @ (b'\r' | b'\n') => {
                // A line may end in two characters, in either order.
                if self.peek().is_some_and(|o| o != line_end && matches!(o, b'\r' | b'\n')) {
                    self.position += 1;
                }
                return Ok(None);
            }
            _ => return Err(SexpError::Escape { position }),
        }))
    }
}

fn is_space(octet: u8) -> bool {
    matches!(octet, b' ' | b'\t' | 0x0b | 0x0c | b'\r' | b'\n')
}

fn is_token(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || TOKEN_SPECIALS.contains(&octet)
}

fn hex_digit(octet: u8) -> Option<u8> {
    char::from(octet).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_one_value() {
        let expected = Sexp::list([Sexp::atom("q"), Sexp::atom(b"AB\n\"")]);
        for text in [
            &b"(q #41420A22#)"[..],
            b"(q #41 42 0a\n22#)",
            b"(q 4#41420a22#)",
            b" ( q\"AB\\n\\\"\" ) \n",
            b"(q 4\"AB\\x0a\\042\")",
            b"(q \"A\\\r\nB\\\n\\012\\x22\")",
            b"(1:q4:AB\n\")",
        ] {
            assert_eq!(read(text), Ok(expected.clone()), "{}", text.escape_ascii());
        }
        assert_eq!(read(b"##"), Ok(Sexp::atom("")));
        assert_eq!(
            read(b"\"\\b\\t\\v\\n\\f\\r\\'\\377\""),
            Ok(Sexp::atom(b"\x08\t\x0b\n\x0c\r'\xff"))
        );
    }

    #[test]
    fn refuses_what_libgcrypt_refuses() {
        use SexpError::*;
        for (text, error) in [
            (&b""[..], Unfinished),
            (b"(a", Unfinished),
            (b"(a \"b", Unfinished),
            (b"(a 9:b)", Unfinished),
            (b")", Unopened { position: 0 }),
            (b"(a)(b)", Trailing { position: 3 }),
            (b"(a #4#)", Hexadecimal { position: 5 }),
            (b"(a #4g#)", Hexadecimal { position: 5 }),
            (b"(a 3#41#)", Length { position: 3 }),
            (b"(a 01:b)", Length { position: 3 }),
            (b"(a 99999999999999999999:b)", Length { position: 3 }),
            (b"(a 1 b)", Length { position: 3 }),
            (b"(a \"\\q\")", Escape { position: 5 }),
            (b"(a \"\\777\")", Escape { position: 5 }),
            (b"(a |YQ==|)", Character { position: 3 }),
            (b"(a [hint]b)", Character { position: 3 }),
            (b"(a \0)", Character { position: 3 }),
        ] {
            assert_eq!(read(text), Err(error), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let nested = |depth| [b"(".repeat(depth), b")".repeat(depth)].concat();
        assert!(read(&nested(limits::MAX_SEXP_DEPTH)).is_ok());
        assert_eq!(read(&nested(limits::MAX_SEXP_DEPTH + 1)), Err(SexpError::TooDeep));
        assert_eq!(
            read(&b" ".repeat(limits::MAX_SEXP_BYTES + 1)),
            Err(SexpError::TooLarge { octets: limits::MAX_SEXP_BYTES + 1 })
        );
    }
}
