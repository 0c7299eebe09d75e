//! Answers to `/HASH.narinfo`: the hot path, thousands at a time.

use super::ahead::Awaited;
use super::backend::NarinfoAnswer;
use super::connection::{Connection, alongside};
use super::request::Request;
use super::response::Head;
use super::socket::Gone;
use futures::FutureExt;
use http::StatusCode;
use std::time::Duration;
use tokio::time::timeout_at;

const NARINFO_TYPE: &str = "application/x-nix-narinfo";

impl Connection {
    /// Waits for the answer, sending meanwhile what came before it, and writes it.
    pub(super) async fn answer_narinfo(
        &mut self,
        request: &Request,
        answer: Option<Awaited>,
    ) -> Result<(), Gone> {
        let answer = match answer {
            Some(awaited) => self.awaited(awaited).await?,
            // The backend owes one answer a hash; a missing one is its bug, not the client's.
            None => self.unavailable(),
        };
        let metrics = &self.site.metrics;
        match &answer {
            NarinfoAnswer::Hit { body, max_age } => {
                metrics.narinfo_hits.inc();
                self.write_narinfo(request, StatusCode::OK, body, *max_age);
            }
            NarinfoAnswer::Miss { max_age } => {
                metrics.narinfo_misses.inc();
                self.write_narinfo(request, StatusCode::NOT_FOUND, b"", *max_age);
            }
            NarinfoAnswer::Unavailable { max_age } => {
                metrics.narinfo_unavailable.inc();
                self.write_narinfo(request, StatusCode::NOT_FOUND, b"", *max_age);
            }
        }
        Ok(())
    }

    async fn awaited(&mut self, mut awaited: Awaited) -> Result<NarinfoAnswer, Gone> {
        let answer = match (&mut awaited.future).now_or_never() {
            Some(answer) => answer,
            None => {
                self.flush().await?;
                let deadline = awaited.since + self.site.config.narinfo_deadline;
                let wait = timeout_at(deadline, awaited.future);
                let answer =
                    alongside(&mut self.ahead, &self.socket, &self.site, false, wait).await?;
                answer.unwrap_or_else(|_| self.unavailable())
            }
        };
        self.site.metrics.narinfo_wait_seconds.observe(awaited.since.elapsed().as_secs_f64());
        Ok(answer)
    }

    fn unavailable(&self) -> NarinfoAnswer {
        NarinfoAnswer::Unavailable { max_age: self.site.config.unavailable_max_age }
    }

    fn write_narinfo(
        &mut self,
        request: &Request,
        status: StatusCode,
        body: &[u8],
        max_age: Duration,
    ) {
        Head::new(&mut self.out, status, body.len() as u64, &mut self.date)
            .field("Content-Type", NARINFO_TYPE)
            .max_age(max_age)
            .end(request);
        if !request.head_only {
            self.out.extend_from_slice(body);
            self.site.metrics.sent_to_http_bytes.inc_by(body.len() as u64);
        }
    }
}
