//! Octets through one TCP connection on loopback and nothing else: the most that a transfer could
//! reach on this machine at this moment.

use anyhow::Context;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Octets that are written and read at once; more brings nothing.
const BUFFER_BYTES: usize = 256 * 1024;

/// Sends this many octets from one thread to another and says how long it took.
///
/// # Errors
/// What the sockets say.
pub fn transfer(bytes: u64) -> anyhow::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let sender = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        // The receiver's word to begin: the connection is not part of what is measured.
        stream.read_exact(&mut [0])?;
        let buffer = vec![0x5a; BUFFER_BYTES];
        let mut left = bytes;
        while left > 0 {
            let part = left.min(BUFFER_BYTES as u64);
            // At most the buffer's length.
            stream.write_all(&buffer[..part as usize])?;
            left -= part;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let start = Instant::now();
    stream.write_all(&[1])?;
    let mut received = 0;
    while received < bytes {
        let part = stream.read(&mut buffer)?;
        anyhow::ensure!(part > 0, "the connection ended after {received} of {bytes} octets");
        received += part as u64;
    }
    let took = start.elapsed();
    sender.join().ok().context("the sending thread has panicked")??;
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_octets_arrive() {
        assert!(transfer(1_000_001).expect("loopback works") > Duration::ZERO);
    }
}
