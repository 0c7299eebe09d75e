//! One connection: answers in order, gathers small answers into few writes, reads ahead
//! whenever it has to wait, and never waits without a deadline.

use super::ahead::{Ahead, Asked};
use super::request::{Refusal, Request};
use super::response::{DateText, Head};
use super::route::Route;
use super::server::Site;
use super::socket::{Gone, Socket};
use http::StatusCode;
use narswarm_protocol::limits::MAX_GATHERED_ANSWER_BYTES;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// A client that has closed its side of the connection may still be reading (`nc -N`), or be
/// gone. If nothing could be sent to it for so long, it counts as gone.
const HALF_CLOSED_GRACE: Duration = Duration::from_secs(1);

/// How long the connection is held open after its last answer for the client to take it in.
const LINGER: Duration = Duration::from_secs(2);

/// One accepted connection.
pub(super) struct Connection {
    pub(super) site: Arc<Site>,
    pub(super) socket: Socket,
    pub(super) ahead: Ahead,
    /// Answers, or the head of one, that are not sent yet.
    pub(super) out: Vec<u8>,
    pub(super) date: DateText,
    /// Whether the client is on this machine.
    pub(super) is_local: bool,
    /// Told when the connection shall make room, if it is idle.
    make_room: Arc<Notify>,
}

/// How a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// With its last answer, which the client has to take in first.
    Answered,
    /// While it idled.
    Idle,
}

/// Why an idle connection wakes.
enum Woken {
    /// Bytes have arrived.
    Read,
    /// It has idled for too long, has to make room, or the node shuts down.
    Close,
    /// The rest of a head is overdue.
    Overdue,
}

impl Connection {
    /// Takes over an accepted connection.
    pub fn new(site: Arc<Site>, stream: TcpStream) -> Self {
        let is_local = stream.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback());
        Self {
            site,
            socket: Socket::new(stream),
            ahead: Ahead::default(),
            out: Vec::new(),
            date: DateText::default(),
            is_local,
            make_room: Arc::default(),
        }
    }

    /// Serves the connection to its end.
    pub async fn run(mut self, stop: CancellationToken) {
        // If this fails the socket is simply dropped: with a reset if a body was owed.
        if self.serve(&stop).await == Ok(Ending::Answered) {
            self.socket.end();
            let _ = timeout(LINGER, self.discard_rest()).await;
        }
    }

    async fn serve(&mut self, stop: &CancellationToken) -> Result<Ending, Gone> {
        loop {
            while let Some(asked) = self.ahead.pop(&self.site) {
                let was_last = !asked.request.keep_alive;
                self.answer(asked).await?;
                if was_last {
                    self.flush().await?;
                    return Ok(Ending::Answered);
                }
                if self.out.len() >= MAX_GATHERED_ANSWER_BYTES {
                    self.flush().await?;
                }
                // Answers that are all at hand must not keep other connections waiting.
                tokio::task::consume_budget().await;
            }
            self.flush().await?;
            if self.ahead.is_finished() {
                return Ok(Ending::Answered);
            }
            match self.wait(stop).await? {
                Woken::Read => {}
                Woken::Close => return Ok(Ending::Idle),
                Woken::Overdue => self.ahead.refuse_rest(Refusal::Timeout),
            }
        }
    }

    /// Waits for a request. Nothing is owed to the client now.
    async fn wait(&mut self, stop: &CancellationToken) -> Result<Woken, Gone> {
        self.out = Vec::new();
        self.ahead.shrink();
        let config = &self.site.config;
        let since = Instant::now();
        let mut head_since = None;
        let _ticket = self.site.idle.enter(&self.make_room);
        loop {
            let (deadline, late) = if self.ahead.is_in_mid_head() {
                let since = *head_since.get_or_insert_with(Instant::now);
                (since + config.head_timeout, Woken::Overdue)
            } else {
                (since + config.idle_timeout, Woken::Close)
            };
            tokio::select! {
                biased;
                read = self.ahead.read(&self.socket, &self.site) => read?,
                () = stop.cancelled() => return Ok(Woken::Close),
                () = self.make_room.notified() => return Ok(Woken::Close),
                () = sleep_until(deadline) => return Ok(late),
            }
            if self.ahead.has_requests() || self.ahead.is_finished() {
                return Ok(Woken::Read);
            }
        }
    }

    async fn answer(&mut self, asked: Asked) -> Result<(), Gone> {
        let request = asked.request;
        match &request.target {
            Ok(Route::Narinfo(_)) => self.answer_narinfo(&request, asked.answer).await,
            // Boxed, so that idle connections don't hold room for a transfer's state.
            Ok(Route::Nar(item, form)) => Box::pin(self.answer_nar(&request, item, *form)).await,
            Ok(Route::File(file)) => Box::pin(self.answer_file(&request, file)).await,
            Ok(page) => {
                self.answer_page(&request, page);
                Ok(())
            }
            Err(refusal) => {
                self.answer_refused(&request, *refusal);
                Ok(())
            }
        }
    }

    fn answer_refused(&mut self, request: &Request, refusal: Refusal) {
        let text = format!("{refusal}\n");
        self.site.count(refusal.status());
        let mut head =
            Head::new(&mut self.out, refusal.status(), text.len() as u64, &mut self.date)
                .field("Content-Type", "text/plain; charset=utf-8");
        if refusal == Refusal::Method {
            head = head.field("Allow", "GET, HEAD");
        }
        head.end(request);
        if !request.head_only {
            self.out.extend_from_slice(text.as_bytes());
        }
    }

    /// A short text answer.
    pub(super) fn answer_text(&mut self, request: &Request, status: StatusCode, text: &str) {
        self.site.count(status);
        Head::new(&mut self.out, status, text.len() as u64, &mut self.date)
            .field("Content-Type", "text/plain; charset=utf-8")
            .end(request);
        if !request.head_only {
            self.out.extend_from_slice(text.as_bytes());
        }
    }

    /// Sends what has been gathered.
    pub(super) async fn flush(&mut self) -> Result<(), Gone> {
        self.send(&[]).await
    }

    /// Sends what has been gathered, and `chunk` after it. Goes on reading meanwhile: a client
    /// that writes all its requests before it reads an answer would otherwise wait for us while
    /// we wait for it.
    pub(super) async fn send(&mut self, chunk: &[u8]) -> Result<(), Gone> {
        if self.out.is_empty() && chunk.is_empty() {
            return Ok(());
        }
        let work = self.socket.write_all(&self.out, chunk, self.site.config.write_stall);
        alongside(&mut self.ahead, &self.socket, &self.site, false, work).await??;
        self.out.clear();
        Ok(())
    }

    /// Reads on after the last answer until the client has closed too: closing with unread
    /// bytes would reset the connection, and the client might never see the answer.
    async fn discard_rest(&mut self) -> Result<(), Gone> {
        self.ahead.discard();
        while self.ahead.ended_at().is_none() {
            self.ahead.read(&self.socket, &self.site).await?;
        }
        Ok(())
    }
}

/// Does `work`, and reads ahead for as long as it takes.
///
/// # Errors
/// The client has gone away: it reset the connection, or, for work that may wait long (`impatient`),
/// it closed its side and the work has stood still since.
pub(super) async fn alongside<T>(
    ahead: &mut Ahead,
    socket: &Socket,
    site: &Site,
    impatient: bool,
    work: impl Future<Output = T>,
) -> Result<T, Gone> {
    let mut work = pin!(work);
    let began = Instant::now();
    loop {
        let leave_at = ahead.ended_at().map(|ended| ended.max(began) + HALF_CLOSED_GRACE);
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            read = ahead.read(socket, site) => read?,
            () = sleep_until(leave_at.unwrap_or(began)), if impatient && leave_at.is_some() => {
                return Err(Gone::Closed);
            }
        }
    }
}
