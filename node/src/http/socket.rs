//! An accepted TCP connection with the two habits that guix needs of its server.
//!
//! - **Quick acknowledgements.** guix writes the `GET` of a nar request alone and holds the rest
//!   back until it is acknowledged (Nagle's algorithm); the kernel's delayed acknowledgement
//!   would add 40 ms to every nar. `TCP_QUICKACK` is not sticky, so it is set after each read.
//! - **Resets.** An end of file in mid-body makes guix throw and the build fail; a reset makes
//!   it fall back. So while a body is owed the socket is *armed* (`SO_LINGER` 0): whatever closes
//!   it then, an error, a dropped task, a panic or `kill -9`, closes it with a reset. Only a
//!   complete answer disarms it.

use bytes::BytesMut;
use socket2::SockRef;
use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The client went away, or stopped reading for too long. Nothing more can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// The connection was closed or reset.
    Closed,
    /// The client read nothing for the allowed time.
    Stalled,
    /// The answer could not be completed, so that the connection must be reset.
    Aborted,
}

/// What reading found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// This many bytes, more than none.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// The client will send no more.
    End,
}

/// An accepted connection.
pub(super) struct Socket {
    stream: TcpStream,
    armed: AtomicBool,
}

impl Socket {
    /// Takes over an accepted connection. Options that the kernel refuses are left as they are:
    /// they make answers faster, not possible.
    pub fn new(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        let socket = Self { stream, armed: AtomicBool::new(false) };
        socket.acknowledge_quickly();
        socket
    }

    /// Asks for the next acknowledgement to leave at once.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn acknowledge_quickly(&self) {
        let _ = SockRef::from(&self.stream).set_tcp_quickack(true);
    }

    /// Other systems have no such option.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub fn acknowledge_quickly(&self) {}

    /// From now on, any end of the connection is a reset.
    pub fn arm(&self) {
        if !self.armed.swap(true, Ordering::Relaxed) {
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// All that was owed has been handed to the kernel: the connection may end normally.
    pub fn disarm(&self) {
        if self.armed.swap(false, Ordering::Relaxed) {
            let _ = SockRef::from(&self.stream).set_linger(None);
        }
    }

    /// Waits until there is something to read.
    pub async fn readable(&self) -> Result<(), Gone> {
        self.stream.readable().await.map_err(|_| Gone::Closed)
    }

    /// Appends to `buffer` what has arrived, at most its spare capacity.
    pub fn read(&self, buffer: &mut BytesMut) -> Result<Read, Gone> {
        loop {
            return match self.stream.try_read_buf(buffer) {
                Ok(0) => Ok(Read::End),
                Ok(count) => Ok(Read::Bytes(count)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Read::Nothing),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => Err(Gone::Closed),
            };
        }
    }

    /// Writes all of `head` and then of `tail`; each write must get on within `stall`.
    pub async fn write_all(&self, head: &[u8], tail: &[u8], stall: Duration) -> Result<(), Gone> {
        let (mut head, mut tail) = (head, tail);
        while !head.is_empty() || !tail.is_empty() {
            let written = match self.write_some(head, tail) {
                Ok(0) => return Err(Gone::Closed),
                Ok(written) => written,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let writable = timeout(stall, self.stream.writable()).await;
                    writable.map_err(|_| Gone::Stalled)?.map_err(|_| Gone::Closed)?;
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Err(Gone::Closed),
            };
            let of_head = written.min(head.len());
            head = &head[of_head..];
            tail = &tail[written - of_head..];
        }
        Ok(())
    }

    fn write_some(&self, head: &[u8], tail: &[u8]) -> io::Result<usize> {
        match (head.is_empty(), tail.is_empty()) {
            (true, _) => self.stream.try_write(tail),
            (_, true) => self.stream.try_write(head),
            _ => self.stream.try_write_vectored(&[IoSlice::new(head), IoSlice::new(tail)]),
        }
    }

    /// Tells the client that nothing more will come.
    pub fn end(&self) {
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Write);
    }
}
