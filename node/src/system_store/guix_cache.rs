//! Narinfos that guix itself has fetched lately and keeps (`guix/substitutes.scm`,
//! `cache-narinfo!`): `CACHE/HASH-OF-THE-SERVER'S-URL/STORE-HASH`, each one expression
//!
//! ```text
//! (narinfo (version 2) (cache-uri "URL") (date SECONDS) (ttl SECONDS) (value "NARINFO"))
//! ```
//!
//! as Guile writes it; `#f` in place of the narinfo where the server had none. How old it is
//! doesn't matter here, since what was signed stays signed. Nothing in it is believed.

use bytes::Bytes;
use narswarm_protocol::limits::{MAX_GUIX_CACHES, MAX_NARINFO_BYTES};
use narswarm_protocol::store_path::StoreHash;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest entry that is read: Guile writes some octets as several, most of them as they are.
const MAX_ENTRY_BYTES: u64 = 2 * MAX_NARINFO_BYTES as u64;

/// guix's cache of narinfos.
#[derive(Debug, Clone)]
pub struct GuixCache {
    dir: PathBuf,
}

impl GuixCache {
    /// The cache in `dir`, which need not exist.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The folders of the cache, one for each server that guix has asked.
    #[must_use]
    pub fn servers(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let mut servers: Vec<_> =
            entries.take(MAX_GUIX_CACHES).filter_map(|entry| Some(entry.ok()?.path())).collect();
        servers.sort();
        servers
    }

    /// What guix has heard of an item, from each of `servers`.
    pub fn narinfos(servers: &[PathBuf], item: &StoreHash) -> Vec<Bytes> {
        let name = item.to_string();
        servers.iter().filter_map(|server| read_entry(&server.join(&name))).collect()
    }
}

fn read_entry(path: &Path) -> Option<Bytes> {
    let mut entry = Vec::new();
    File::open(path).ok()?.take(MAX_ENTRY_BYTES).read_to_end(&mut entry).ok()?;
    narinfo_of(&entry).map(Bytes::from)
}

/// The narinfo in an entry of the cache.
fn narinfo_of(entry: &[u8]) -> Option<Vec<u8>> {
    let mut rest = strip(entry, b"(")?;
    rest = strip(rest, b"narinfo")?;
    rest = field(rest, b"version")?;
    rest = strip(strip(rest, b"2")?, b")")?;
    rest = field(rest, b"cache-uri")?;
    rest = strip(read_string(trim(rest))?.1, b")")?;
    for name in [b"date".as_slice(), b"ttl"] {
        rest = field(rest, name)?;
        let end = rest.iter().position(|&octet| octet == b')')?;
        rest = &rest[end + 1..];
    }
    rest = field(rest, b"value")?;
    let (narinfo, rest) = read_string(trim(rest))?;
    strip(strip(rest, b")")?, b")")?;
    Some(narinfo)
}

fn trim(text: &[u8]) -> &[u8] {
    text.trim_ascii_start()
}

fn strip<'t>(text: &'t [u8], token: &[u8]) -> Option<&'t [u8]> {
    trim(text).strip_prefix(token)
}

/// What follows `(NAME `.
fn field<'t>(text: &'t [u8], name: &[u8]) -> Option<&'t [u8]> {
    let rest = strip(strip(text, b"(")?, name)?;
    rest.first().is_some_and(u8::is_ascii_whitespace).then(|| trim(rest))
}

/// Reads a string as Guile writes it, and what follows it.
fn read_string(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut rest = text.strip_prefix(b"\"")?;
    let mut string = Vec::new();
    loop {
        let (&octet, after) = rest.split_first()?;
        rest = after;
        match octet {
            b'"' => return Some((string, rest)),
            b'\\' => {
                let (&escape, after) = rest.split_first()?;
                rest = after;
                let digits = match escape {
                    b'x' => 2,
                    b'u' => 4,
                    b'U' => 6,
                    _ => 0,
                };
                if digits == 0 {
                    string.push(unescape(escape)?);
                    continue;
                }
                let (code, after) = rest.split_at_checked(digits)?;
                let code = u32::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok()?;
                let character = char::from_u32(code)?;
                string.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                // With `r6rs-hex-escapes` a semicolon ends it.
                rest =
                    if escape == b'x' { after.strip_prefix(b";").unwrap_or(after) } else { after };
            }
            other => string.push(other),
        }
    }
}

fn unescape(octet: u8) -> Option<u8> {
    Some(match octet {
        b'"' | b'\\' | b'|' => octet,
        b'n' => b'\n',
        b't' => b'\t',
        b'r' => b'\r',
        b'a' => 7,
        b'b' => 8,
        b'v' => 11,
        b'f' => 12,
        b'0' => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const NARINFO: &str = "StorePath: /gnu/store/x\nURL: nar/gzip/\"a\\b\"\nReferences: é\t∀\n";

    fn entry(value: &str) -> String {
        format!(
            "(narinfo (version 2) (cache-uri \"https://a.example\") (date 12) (ttl 3600) \
             (value {value}))"
        )
    }

    fn written(text: &str) -> String {
        let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("\"{escaped}\"")
    }

    #[test]
    fn entries_are_read_as_guile_writes_them() {
        let read =
            |entry: &str| narinfo_of(entry.as_bytes()).map(|n| String::from_utf8(n).expect("text"));
        assert_eq!(read(&entry(&written(NARINFO))).as_deref(), Some(NARINFO));
        assert_eq!(read(&entry("\"\\xe9\\u2200\\x41;\"")).as_deref(), Some("é∀A"));
        assert_eq!(read(&entry("#f")), None);
        let whole = entry(&written(NARINFO));
        for cut in 0..whole.len() {
            assert_eq!(narinfo_of(&whole.as_bytes()[..cut]), None, "cut at {cut}");
        }
        assert_eq!(read(&whole.replace("version 2", "version 3")), None);
    }

    #[test]
    fn guile_itself_agrees() {
        let program = format!(
            "(write `(narinfo (version 2) (cache-uri \"u\") (date 1) (ttl 2) (value {})))",
            written(NARINFO)
        );
        let Ok(output) = Command::new("guile")
            .env("GUILE_AUTO_COMPILE", "0")
            .env("LC_ALL", "C.UTF-8")
            .args(["-c", &program])
            .output()
        else {
            eprintln!("SKIPPED: guile does not run");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(narinfo_of(&output.stdout).as_deref(), Some(NARINFO.as_bytes()));
    }

    #[test]
    fn entries_are_found_below_each_server() {
        let cache = tempfile::tempdir().expect("a directory");
        let item = StoreHash([7; 20]);
        for (server, value) in
            [("a", written("one")), ("b", "#f".to_owned()), ("c", written("two"))]
        {
            let dir = cache.path().join(server);
            fs::create_dir(&dir).expect("a directory");
            fs::write(dir.join(item.to_string()), entry(&value)).expect("an entry");
        }
        let servers = GuixCache::new(cache.path().to_owned()).servers();
        assert_eq!(GuixCache::narinfos(&servers, &item), ["one", "two"]);
        assert!(GuixCache::narinfos(&servers, &StoreHash([8; 20])).is_empty());
        assert!(GuixCache::new(cache.path().join("none")).servers().is_empty());
    }
}
