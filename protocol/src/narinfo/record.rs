//! The lines of a narinfo, read as Guix's `recutils->alist` does (`guix/records.scm`).
//!
//! An empty line ends the record, unless nothing stood before it; `#` begins a comment. Lines over
//! which Guix throws are refused. So are continuation lines (`+ …`), which Guix reads but nothing
//! writes: they would let one line say what another means. So are carriage returns.

use super::NarinfoError;

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It holds a carriage return.
    #[error("holds a carriage return; lines must end in line feeds alone")]
    CarriageReturn,
    /// It has no colon, or begins with what begins no field.
    #[error("is not of the form FIELD: VALUE")]
    Form,
    /// It continues the line before.
    #[error("continues another line")]
    Continuation,
}

/// One line.
#[derive(Debug)]
pub(super) struct Field<'a> {
    pub name: &'a str,
    /// What follows the colon, without leading white space. Guix leaves trailing white space.
    pub value: &'a str,
    /// Where the line ends, its line feed included, in octets of the text.
    pub end: usize,
}

/// The fields in their order.
#[derive(Debug)]
pub(super) struct Record<'a> {
    fields: Vec<Field<'a>>,
}

impl<'a> Record<'a> {
    pub fn parse(text: &'a str) -> Result<Self, NarinfoError> {
        let mut fields = Vec::new();
        let mut end = 0;
        for (index, line) in text.split_inclusive('\n').enumerate() {
            end += line.len();
            let line = line.strip_suffix('\n').unwrap_or(line);
            let refuse = |error| Err(NarinfoError::Line { number: index + 1, error });
            if line.contains('\r') {
                return refuse(LineError::CarriageReturn);
            }
            match line.chars().next() {
                None if fields.is_empty() => {}
                None => break,
                Some('#') => {}
                Some('+') => return refuse(LineError::Continuation),
                Some(first) if first == '%' || first.is_lowercase() || first.is_uppercase() => {
                    let Some((name, value)) = line.split_once(':') else {
                        return refuse(LineError::Form);
                    };
                    fields.push(Field { name, value: value.trim_start(), end });
                }
                Some(_) => return refuse(LineError::Form),
            }
        }
        Ok(Self { fields })
    }

    /// The first field of this name, the only one that counts.
    pub fn first(&self, name: &str) -> Option<&Field<'a>> {
        self.all(name).next()
    }

    /// All fields of a name that may be repeated.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &Field<'a>> {
        self.fields.iter().filter(move |field| field.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields_as_guix_does() {
        let text = "\n\nA:  x y \n# comment: no\nA: second\nÉ%: \nB:\tC: d\n\nC: beyond the end";
        let record = Record::parse(text).expect("record");
        let fields: Vec<_> = record.fields.iter().map(|f| (f.name, f.value)).collect();
        assert_eq!(fields, [("A", "x y "), ("A", "second"), ("É%", ""), ("B", "C: d")]);
        let first = record.first("A").expect("field");
        assert_eq!((first.value, &text[..first.end]), ("x y ", "\n\nA:  x y \n"));
        assert_eq!(record.all("A").count(), 2);
        assert!(record.first("C").is_none());
    }

    #[test]
    fn refuses_what_makes_guix_throw() {
        let refusal = |text| Record::parse(text).map(|_| ()).expect_err("malformed");
        let line = |number, error| NarinfoError::Line { number, error };
        assert_eq!(refusal("A: b\nnonsense\n"), line(2, LineError::Form));
        assert_eq!(refusal(" A: b\n"), line(1, LineError::Form));
        assert_eq!(refusal("\u{feff}A: b\n"), line(1, LineError::Form));
        assert_eq!(refusal("A: b\r\n"), line(1, LineError::CarriageReturn));
        assert_eq!(refusal("A: b\n\r\n"), line(2, LineError::CarriageReturn));
        assert_eq!(refusal("A: b\n+ c\n"), line(2, LineError::Continuation));
    }
}
