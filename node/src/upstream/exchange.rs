//! What happens on one connection: requests go out as fast as they are taken, answers come back
//! in order, and both at once, so that neither side ever waits for the other to read.
//!
//! The exchange ends when the server closes, breaks, falls silent or has had nothing to do for a
//! while, and hands back what is unanswered.

use super::breaker::Failure;
use super::dial::Link;
use super::error::ResponseProblem;
use super::pipeline::Pipeline;
use super::request::Request;
use super::response::{Answer, ResponseReader};
use bytes::{Buf, BytesMut};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until};

/// Octets that are read at once: some fifty narinfos.
const READ_BYTES: usize = 64 * 1024;

/// Why an exchange ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// An idle connection turned out to be closed.
    Stale,
    /// The server said that it closes the connection, or was expected to by its limit.
    Limit,
    /// The connection broke or ended with requests unanswered.
    Closed { answered: usize },
    /// Nothing came for too long.
    Silent { after: Duration },
    /// The first unanswered request has too long an answer.
    TooLong(ResponseProblem),
    /// What came is not HTTP.
    Garbage(ResponseProblem),
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
struct Deadlines {
    silence: Duration,
    answer: Duration,
    request: Duration,
}

impl Deadlines {
    /// When to stop waiting: for the next octet, for the answer that is due, for the request.
    fn due(&self, last_octet: Instant, answer_due: Instant, asked: Instant) -> Instant {
        (last_octet + self.silence).min(answer_due + self.answer).min(asked + self.request)
    }
}

struct Exchange<'a> {
    pipeline: &'a Arc<Pipeline>,
    deadlines: Deadlines,
    under_way: VecDeque<Request>,
    responses: ResponseReader,
    input: BytesMut,
    output: BytesMut,
    is_flushed: bool,
    can_send: bool,
    sent: usize,
    answered: usize,
    /// Whether the connection idled before the requests now under way, none of them answered.
    is_reused: bool,
    last_octet: Instant,
    answer_due: Instant,
}

/// Answers requests over `link` for as long as it lasts; returns the unanswered ones, in order.
pub(super) async fn exchange(
    pipeline: &Arc<Pipeline>,
    link: Box<dyn Link>,
) -> (VecDeque<Request>, Ending) {
    let (mut reader, mut writer) = tokio::io::split(link);
    let now = Instant::now();
    let config = &pipeline.config;
    let mut exchange = Exchange {
        pipeline,
        deadlines: Deadlines {
            silence: config.silence,
            answer: config.answer_timeout,
            request: config.request_timeout,
        },
        under_way: VecDeque::new(),
        responses: ResponseReader::default(),
        input: BytesMut::with_capacity(READ_BYTES),
        output: BytesMut::new(),
        is_flushed: true,
        can_send: true,
        sent: 0,
        answered: 0,
        is_reused: false,
        last_octet: now,
        answer_due: now,
    };
    let ending = exchange.run(&mut reader, &mut writer).await;
    // Answered requests were removed; the rest is for the pipeline to judge.
    (exchange.under_way, ending)
}

/// A GET for `file` below the server's base. No Accept-Encoding: the body is wanted as it is.
pub(super) fn spell(pipeline: &Pipeline, file: &str) -> String {
    let mut text = String::new();
    spell_into(&mut text, pipeline, file);
    text
}

fn spell_into(text: &mut impl std::fmt::Write, pipeline: &Pipeline, file: impl std::fmt::Display) {
    let origin = &pipeline.origin;
    // Writing to memory cannot fail.
    let _ = write!(
        text,
        "GET {}/{file} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {}\r\n\r\n",
        origin.path, origin.authority, pipeline.config.user_agent
    );
}

impl Exchange<'_> {
    async fn run(
        &mut self,
        reader: &mut ReadHalf<Box<dyn Link>>,
        writer: &mut WriteHalf<Box<dyn Link>>,
    ) -> Ending {
        let pipeline = Arc::clone(self.pipeline);
        loop {
            // Registered before the queue is looked at, so that no wake-up is lost.
            let woken = pipeline.wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            self.take();
            if self.under_way.is_empty() && !self.can_send {
                return Ending::Limit;
            }
            let idle_until = self.last_octet.max(self.answer_due) + pipeline.config.idle_timeout;
            let deadline = match self.under_way.front() {
                Some(first) => self.deadlines.due(self.last_octet, self.answer_due, first.since),
                None => idle_until,
            };
            self.input.reserve(READ_BYTES);
            let has_output = !self.output.is_empty() || !self.is_flushed;
            tokio::select! {
                // What has come in counts before any deadline does.
                biased;
                read = reader.read_buf(&mut self.input) => {
                    let ended = !matches!(read, Ok(octets) if octets > 0);
                    if let Err(ending) = self.receive(ended).await {
                        return ending;
                    }
                    // Taken afterwards: waiting for a slow asker is not the server's silence.
                    self.last_octet = Instant::now();
                }
                written = write(writer, &mut self.output), if has_output => match written {
                    Ok(()) => self.is_flushed = self.output.is_empty(),
                    // What the server sent before it closed is still worth reading.
                    Err(_) => self.stop_sending(),
                },
                () = woken => {}
                () = sleep_until(deadline) => return if self.under_way.is_empty() {
                    Ending::Stale
                } else {
                    Ending::Silent { after: self.last_octet.elapsed() }
                },
                () = pipeline.stop.cancelled() => return Ending::Stale,
            }
        }
    }

    /// Takes requests off the queue and spells them.
    fn take(&mut self) {
        let limit = self.pipeline.answers_per_connection();
        if !self.can_send || (self.sent >= limit && self.answered < self.sent) {
            return;
        }
        if self.sent >= limit {
            // All are answered and the server has not closed: its limit is higher, if it has one.
            self.pipeline.learn_limit(self.sent, false);
        }
        let room = self
            .pipeline
            .config
            .window
            .max(1)
            .saturating_sub(self.under_way.len())
            .min(self.pipeline.answers_per_connection().saturating_sub(self.sent));
        let was = self.under_way.len();
        self.pipeline.take(&mut self.under_way, room);
        let taken = self.under_way.len() - was;
        if taken == 0 {
            return;
        }
        if was == 0 {
            let now = Instant::now();
            self.is_reused = self.answered > 0 || now - self.answer_due > Duration::from_secs(1);
            self.last_octet = now;
            self.answer_due = now;
        }
        self.sent += taken;
        let mut text = String::with_capacity(taken * 128);
        for request in self.under_way.range(was..) {
            spell_into(&mut text, self.pipeline, format_args!("{}.narinfo", request.hash));
        }
        self.output.extend_from_slice(text.as_bytes());
        self.is_flushed = false;
    }

    fn stop_sending(&mut self) {
        self.can_send = false;
        self.output.clear();
        self.is_flushed = true;
    }

    /// Deals with what has come in.
    async fn receive(&mut self, ended: bool) -> Result<(), Ending> {
        let mut misses = Vec::new();
        let ending = self.receive_all(ended, &mut misses).await;
        self.pipeline.pass_on(misses);
        ending
    }

    async fn receive_all(&mut self, ended: bool, misses: &mut Vec<Request>) -> Result<(), Ending> {
        while !self.under_way.is_empty() {
            match self.responses.next(&mut self.input, ended) {
                Ok(Some(answer)) => {
                    let keep_alive = answer.keep_alive;
                    if let Some(request) = self.under_way.pop_front() {
                        self.answered += 1;
                        self.is_reused = false;
                        self.answer_due = Instant::now();
                        self.deliver(request, answer, misses).await;
                    }
                    if !keep_alive {
                        if !self.under_way.is_empty() {
                            self.pipeline.learn_limit(self.answered, true);
                        }
                        return Err(Ending::Limit);
                    }
                }
                Ok(None) if ended => return Err(self.ending_of_close()),
                Ok(None) => return Ok(()),
                Err(problem @ ResponseProblem::BodyTooLong { .. }) => {
                    return Err(Ending::TooLong(problem));
                }
                Err(problem) => return Err(Ending::Garbage(problem)),
            }
        }
        // Octets that nothing asked for (some proxies send 408 before they close) end the
        // connection as its closing does, lest they be taken for the next request's answer.
        if ended || self.input.has_remaining() { Err(Ending::Stale) } else { Ok(()) }
    }

    fn ending_of_close(&self) -> Ending {
        if self.is_reused {
            return Ending::Stale;
        }
        Ending::Closed { answered: self.answered }
    }

    /// Replies, or notes the miss. Only 200 is a hit, as for guix: a redirect is a miss.
    async fn deliver(&mut self, mut request: Request, answer: Answer, misses: &mut Vec<Request>) {
        match answer.status {
            200 => {
                self.pipeline.succeeded();
                let label = self.pipeline.label();
                request.found(self.pipeline.index, answer.body, &label).await;
            }
            429 | 500..=599 => {
                let url = self.pipeline.narinfo_url(request.hash);
                let status = answer.status;
                request.failed(&super::UpstreamError::Status { url, status });
                misses.push(request);
                self.pipeline.failed(Failure::Status);
            }
            status => {
                self.pipeline.succeeded();
                // Of other statuses guix keeps no max-age either.
                let is_told = matches!(status, 202 | 404 | 410);
                request.missed(answer.max_age.filter(|_| is_told));
                misses.push(request);
            }
        }
    }
}

/// Writes some of `output`, or flushes when there is nothing left to write. Cancelling it loses
/// nothing.
async fn write(
    writer: &mut WriteHalf<Box<dyn Link>>,
    output: &mut BytesMut,
) -> std::io::Result<()> {
    if output.is_empty() {
        return writer.flush().await;
    }
    match writer.write_buf(output).await? {
        0 => Err(std::io::ErrorKind::WriteZero.into()),
        _ if output.is_empty() => writer.flush().await,
        _ => Ok(()),
    }
}
