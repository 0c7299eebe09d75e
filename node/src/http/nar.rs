//! Answers to `/nar/…` and `/file/…`: long bodies that come from elsewhere and may fail.
//!
//! The socket is armed before anything else (see `socket`), and disarmed once the answer is
//! complete: whatever goes wrong in between, the client sees a reset. A failure before the first
//! byte of the body is told by a status instead, as long as the head has not been sent.

use super::backend::{NarAborted, NarForm, NarRefusal, NarReply, NarWant};
use super::connection::{Connection, alongside};
use super::request::Request;
use super::response::Head;
use super::route::FileName;
use super::socket::Gone;
use crate::metrics::AbortCause;
use bytes::Bytes;
use futures::StreamExt;
use http::StatusCode;
use narswarm_protocol::store_path::ItemName;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// What is to be opened.
#[derive(Clone, Copy)]
enum Subject<'a> {
    Nar(&'a ItemName, NarForm),
    File(&'a FileName),
}

impl std::fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nar(item, _) => write!(f, "{item}"),
            Self::File(file) => f.write_str(&file.name),
        }
    }
}

/// The first bytes of a body, if they came in time.
enum First {
    Chunk(Bytes),
    NotYet,
    End,
}

/// Why an answer did not come to its end as it was meant.
enum Cut {
    /// The client is gone.
    Client(Gone),
    /// The body failed after the head was written.
    Body(NarAborted),
    /// There is no body; nothing has been written yet.
    Refused(NarRefusal),
}

impl From<Gone> for Cut {
    fn from(gone: Gone) -> Self {
        Self::Client(gone)
    }
}

impl From<NarRefusal> for Cut {
    fn from(refusal: NarRefusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Connection {
    pub(super) async fn answer_nar(
        &mut self,
        request: &Request,
        item: &ItemName,
        form: NarForm,
    ) -> Result<(), Gone> {
        self.site.metrics.nar_requests.inc();
        self.answer_long(request, Subject::Nar(item, form)).await
    }

    pub(super) async fn answer_file(
        &mut self,
        request: &Request,
        file: &FileName,
    ) -> Result<(), Gone> {
        self.answer_long(request, Subject::File(file)).await
    }

    async fn answer_long(&mut self, request: &Request, subject: Subject<'_>) -> Result<(), Gone> {
        self.socket.arm();
        let (gone, cause) = match self.open_and_send(request, subject).await {
            Ok(()) => return self.complete().await,
            Err(Cut::Refused(refusal)) => {
                tracing::debug!(item = %subject, error = %refusal, "refusing a nar");
                self.answer_nar_refused(request, &refusal, subject);
                return self.complete().await;
            }
            Err(Cut::Body(aborted)) => {
                tracing::warn!(item = %subject, error = %aborted, "resetting a connection in mid-body");
                (Gone::Aborted, abort_cause(&aborted))
            }
            Err(Cut::Client(gone @ Gone::Stalled)) => (gone, AbortCause::ClientStalled),
            Err(Cut::Client(gone)) => (gone, AbortCause::ClientGone),
        };
        self.site.metrics.count_aborted(cause);
        Err(gone)
    }

    /// Sends the last of the answer; the connection may then end normally again.
    async fn complete(&mut self) -> Result<(), Gone> {
        self.flush().await?;
        self.socket.disarm();
        Ok(())
    }

    async fn open_and_send(&mut self, request: &Request, subject: Subject<'_>) -> Result<(), Cut> {
        let began = Instant::now();
        let is_plain = !matches!(subject, Subject::Nar(_, form) if form != NarForm::Plain);
        let mut range = None;
        if let Some(conditions) = request.conditions.as_deref() {
            range = conditions.range;
            if conditions.if_none_match.is_some()
                || range.is_some() && conditions.if_range.is_some()
            {
                // Only the current version can tell whether the condition holds.
                let head = self.open(subject, NarWant::Head).await?;
                let tag = etag(&head, is_plain);
                if names(conditions.if_none_match.as_deref(), tag.as_deref()) {
                    self.answer_not_modified(request, &head, tag.as_deref());
                    return Ok(());
                }
                if conditions.if_range.is_some() && conditions.if_range != tag {
                    range = None;
                }
            }
        }
        let want = if request.head_only { NarWant::Head } else { NarWant::Body { range } };
        let mut reply = self.open(subject, want).await?;
        if request.head_only {
            reply.range = None;
            self.write_nar_head(request, &reply, is_plain, subject);
            return Ok(());
        }
        let first = self.first_chunk(&mut reply).await?;
        self.write_nar_head(request, &reply, is_plain, subject);
        self.send_body(reply, first, began).await
    }

    /// Opens the subject, within the deadline.
    async fn open(&mut self, subject: Subject<'_>, want: NarWant) -> Result<NarReply, Cut> {
        // What has been answered before must not wait for this.
        self.flush().await?;
        let backend = &self.site.backend;
        let opening = async {
            match subject {
                Subject::Nar(item, form) => backend.nar(item, form, want).await,
                Subject::File(file) => backend.file(&file.name, file.sha256, want).await,
            }
        };
        let opening = timeout(self.site.config.nar_deadline, opening);
        let opened = alongside(&mut self.ahead, &self.socket, &self.site, true, opening).await?;
        let reply = opened.unwrap_or(Err(NarRefusal::TimedOut))?;
        Ok(within_bounds(reply)?)
    }

    /// Waits a while for the first bytes, so that a failure before them can be told by a status.
    async fn first_chunk(&mut self, reply: &mut NarReply) -> Result<First, Cut> {
        if body_length(reply) == 0 {
            return Ok(First::End);
        }
        let patience = self.site.config.first_byte_patience;
        match self.next_chunk(reply, patience).await? {
            None => Ok(First::NotYet),
            Some(Some(Ok(chunk))) => Ok(First::Chunk(chunk)),
            Some(Some(Err(aborted))) => Err(NarRefusal::Failed(aborted).into()),
            Some(None) => Err(NarRefusal::Failed(NarAborted::SourcesLost).into()),
        }
    }

    /// The next chunk that is not empty; `None` if it does not come within `patience`.
    async fn next_chunk(
        &mut self,
        reply: &mut NarReply,
        patience: Duration,
    ) -> Result<Option<Option<Result<Bytes, NarAborted>>>, Gone> {
        let next = async {
            loop {
                match reply.body.next().await {
                    Some(Ok(chunk)) if chunk.is_empty() => {}
                    other => return other,
                }
            }
        };
        let next = timeout(patience, next);
        Ok(alongside(&mut self.ahead, &self.socket, &self.site, true, next).await?.ok())
    }

    async fn send_body(
        &mut self,
        mut reply: NarReply,
        first: First,
        began: Instant,
    ) -> Result<(), Cut> {
        let mut left = body_length(&reply);
        let stall = self.site.config.body_stall;
        let mut waiting = match first {
            First::Chunk(chunk) => Some(chunk),
            First::NotYet | First::End => None,
        };
        if waiting.is_none() {
            self.flush().await?;
        }
        let mut is_first = true;
        while left > 0 {
            let chunk = match waiting.take() {
                Some(chunk) => chunk,
                None => match self.next_chunk(&mut reply, stall).await? {
                    Some(Some(Ok(chunk))) => chunk,
                    Some(Some(Err(aborted))) => return Err(Cut::Body(aborted)),
                    Some(None) => return Err(Cut::Body(wrong_length("too few"))),
                    None => return Err(Cut::Body(NarAborted::Stalled)),
                },
            };
            if std::mem::take(&mut is_first) {
                let waited = began.elapsed().as_secs_f64();
                self.site.metrics.nar_first_byte_seconds.observe(waited);
            }
            left = left
                .checked_sub(chunk.len() as u64)
                .ok_or_else(|| Cut::Body(wrong_length("too many")))?;
            self.send(&chunk).await?;
            self.site.metrics.sent_to_http_bytes.inc_by(chunk.len() as u64);
        }
        Ok(())
    }

    fn write_nar_head(
        &mut self,
        request: &Request,
        reply: &NarReply,
        is_plain: bool,
        subject: Subject<'_>,
    ) {
        let status =
            if reply.range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        self.site.count(status);
        let content_type = match subject {
            Subject::Nar(..) => "application/x-nix-archive",
            Subject::File(_) => "application/octet-stream",
        };
        let mut head = Head::new(&mut self.out, status, body_length(reply), &mut self.date)
            .field("Content-Type", content_type)
            .field("Accept-Ranges", "bytes");
        if let Some(range) = &reply.range {
            let value = format!("bytes {}-{}/{}", range.start, range.end - 1, reply.length);
            head = head.field("Content-Range", &value);
        }
        if let Some(tag) = etag(reply, is_plain) {
            head = head.field("ETag", &tag);
        }
        head.end(request);
    }

    fn answer_not_modified(&mut self, request: &Request, reply: &NarReply, tag: Option<&str>) {
        self.site.count(StatusCode::NOT_MODIFIED);
        Head::new(&mut self.out, StatusCode::NOT_MODIFIED, reply.length, &mut self.date)
            .field("ETag", tag.unwrap_or("\"\""))
            .end(request);
    }

    /// The one place where a refusal becomes HTTP.
    fn answer_nar_refused(
        &mut self,
        request: &Request,
        refusal: &NarRefusal,
        subject: Subject<'_>,
    ) {
        let (status, field) = match refusal {
            NarRefusal::NotFound => (StatusCode::NOT_FOUND, None),
            NarRefusal::RangeNotSatisfiable { length } => (
                StatusCode::RANGE_NOT_SATISFIABLE,
                Some(("Content-Range", format!("bytes */{length}"))),
            ),
            NarRefusal::Busy { retry_after } => (
                StatusCode::SERVICE_UNAVAILABLE,
                Some(("Retry-After", retry_after.as_secs().max(1).to_string())),
            ),
            NarRefusal::Failed(_) => (StatusCode::BAD_GATEWAY, None),
            NarRefusal::TimedOut => (StatusCode::GATEWAY_TIMEOUT, None),
        };
        self.site.count(status);
        let text = format!("{refusal}\n");
        let mut head = Head::new(&mut self.out, status, text.len() as u64, &mut self.date)
            .field("Content-Type", "text/plain; charset=utf-8");
        if let Some((name, value)) = &field {
            head = head.field(name, value);
        }
        if let (NarRefusal::NotFound, Subject::File(_)) = (refusal, subject) {
            // Somebody may have it in a moment.
            head = head.max_age(self.site.config.unavailable_max_age);
        }
        head.end(request);
        if !request.head_only {
            self.out.extend_from_slice(text.as_bytes());
        }
    }
}

/// Refuses a reply whose range is not within its length: a backend's bug must not become a head
/// that lies.
fn within_bounds(reply: NarReply) -> Result<NarReply, NarRefusal> {
    match &reply.range {
        Some(range) if range.start >= range.end || range.end > reply.length => {
            Err(NarRefusal::Failed(wrong_length("out of range")))
        }
        _ => Ok(reply),
    }
}

fn body_length(reply: &NarReply) -> u64 {
    reply.range.as_ref().map_or(reply.length, |range| range.end - range.start)
}

/// Only the plain nar has bytes that its hash vouches for; compressed ones may differ from time
/// to time, so that no range of them may be joined to another.
fn etag(reply: &NarReply, is_plain: bool) -> Option<String> {
    let hash = reply.nar_hash.filter(|_| is_plain)?;
    Some(format!("\"sha256:{hash}\""))
}

/// Whether `If-None-Match` names this version: the client has it already.
fn names(condition: Option<&str>, tag: Option<&str>) -> bool {
    let (Some(condition), Some(tag)) = (condition, tag) else { return false };
    condition
        .split(',')
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

fn wrong_length(what: &str) -> NarAborted {
    NarAborted::Local(std::io::Error::other(format!("the bytes of the body are {what}")))
}

fn abort_cause(aborted: &NarAborted) -> AbortCause {
    match aborted {
        NarAborted::Mismatch => AbortCause::Mismatch,
        NarAborted::SourcesLost | NarAborted::Stalled => AbortCause::Sources,
        NarAborted::Local(_) => AbortCause::Local,
    }
}
