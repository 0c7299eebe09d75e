//! How settings come together: flags > environment > file (TOML) > defaults, for the node and the
//! entry node alike.

use anyhow::Context;
use serde::de::DeserializeOwned;
use std::path::Path;

/// A list: what flags or the environment say, else the file, else the default.
pub fn list<T: Clone>(
    flags: &[T],
    file: Option<Vec<T>>,
    default: impl FnOnce() -> Vec<T>,
) -> Vec<T> {
    if flags.is_empty() { file.unwrap_or_else(default) } else { flags.to_vec() }
}

/// Defaults that are written as text.
///
/// # Panics
/// When one of them is not well-formed.
#[must_use]
pub fn parsed<T: std::str::FromStr>(defaults: &[&str]) -> Vec<T>
where
    T::Err: std::fmt::Debug,
{
    defaults.iter().map(|text| text.parse().expect("the defaults are well-formed")).collect()
}

/// The file that is given, or the system's if there is one; nothing is set when there is none.
///
/// # Errors
/// An unreadable or malformed file, by its name.
pub fn read<T: DeserializeOwned + Default>(
    system: &str,
    given: Option<&Path>,
) -> anyhow::Result<T> {
    let path = match given {
        Some(path) => path,
        None if Path::new(system).exists() => Path::new(system),
        None => return Ok(T::default()),
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    toml::from_str(&text)
        .with_context(|| format!("the configuration file {} is not valid", path.display()))
}
