//! Sequences that stop being read as soon as they exceed their bound.

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// Reads an array of at most `MAX` items; for `#[serde(deserialize_with = …)]`.
///
/// # Errors
/// The deserializer's, and one for more items than `MAX`.
pub fn vec<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Items<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Items<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX} items")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            // The claimed number of items is not believed: the vector grows with what is there.
            let mut read = Vec::new();
            while let Some(item) = items.next_element()? {
                if read.len() == MAX {
                    return Err(A::Error::custom("too many items"));
                }
                read.push(item);
            }
            Ok(read)
        }
    }

    deserializer.deserialize_seq(Items::<T, MAX>(PhantomData))
}
