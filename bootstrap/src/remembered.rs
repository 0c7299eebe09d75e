//! Peers across restarts: a small file, so that an entry node which was restarted knows somebody
//! for the newcomers at once.

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::limits::{MAX_SAVED_ADDRESS_BYTES, MAX_SAVED_PEERS};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The file in the data directory: one multiaddress with its `/p2p/` part a line.
const FILE: &str = "peers";

/// Longest file that is read: every line at its longest. A hand may have been at it.
const MAX_FILE_BYTES: u64 = (MAX_SAVED_PEERS * (MAX_SAVED_ADDRESS_BYTES + 1)) as u64;

/// The peers of a data directory; what can't be read is as good as nothing.
#[must_use]
pub fn load(data_dir: &Path) -> Vec<Multiaddr> {
    let mut text = Vec::new();
    let read = File::open(data_dir.join(FILE))
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut text));
    match read {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot read the remembered peers: {error}");
        }
        _ => {}
    }
    let text = String::from_utf8_lossy(&text);
    let addresses = text.lines().filter_map(|line| line.parse::<Multiaddr>().ok());
    addresses
        .filter(|address| matches!(address.iter().last(), Some(Protocol::P2p(_))))
        .take(MAX_SAVED_PEERS)
        .collect()
}

/// Remembers peers, one address of each.
///
/// # Errors
/// When the file can't be written; the old one is then still there.
pub fn save(data_dir: &Path, peers: &[(PeerId, Multiaddr)]) -> io::Result<()> {
    let (path, fresh): (PathBuf, PathBuf) = (data_dir.join(FILE), data_dir.join("peers.new"));
    let mut text = String::new();
    for (peer, address) in peers.iter().take(MAX_SAVED_PEERS) {
        let mut address = address.clone();
        if !matches!(address.iter().last(), Some(Protocol::P2p(_))) {
            address.push(Protocol::P2p(*peer));
        }
        text += &format!("{address}\n");
    }
    let mut file = File::create(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_garbage_is_passed_over() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(load(dir.path()).is_empty());
        let (peer, address) = (PeerId::random(), "/ip4/192.0.2.1/tcp/1".parse().expect("address"));
        save(dir.path(), &[(peer, address)]).expect("written");
        let expected: Multiaddr = format!("/ip4/192.0.2.1/tcp/1/p2p/{peer}").parse().expect("one");
        assert_eq!(load(dir.path()), [expected]);
        fs::write(dir.path().join(FILE), b"\xff\n/ip4/192.0.2.1/tcp/1\nnonsense\n").expect("file");
        assert!(load(dir.path()).is_empty());
    }
}
