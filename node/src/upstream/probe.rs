//! Finding out whether a server that rested is back, without staking requests on it.
//!
//! The probe asks for `nix-cache-info`, which every substitute server has; any answer below 500
//! shows that the server works. Requests wait for the probe only as long as their patience.

use super::dial::Link;
use super::error::UpstreamError;
use super::pipeline::{Pipeline, failure_of};
use super::response::ResponseReader;
use bytes::BytesMut;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

/// Probes the server of `pipeline`; what waits for it is given up at `until`.
pub(super) async fn probe(pipeline: Arc<Pipeline>, until: Instant) {
    let asked = {
        let pipeline = Arc::clone(&pipeline);
        async move { ask(&pipeline).await }
    };
    tokio::pin!(asked);
    let outcome = match timeout_at(until, &mut asked).await {
        Ok(outcome) => outcome,
        Err(_) => {
            pipeline.give_up_waiting();
            asked.await
        }
    };
    match outcome {
        Ok(link) => {
            tracing::info!(upstream = %pipeline.origin.label, "works again");
            pipeline.resume(link);
        }
        Err(error) => {
            tracing::debug!(%error, "a substitute server still does not work");
            pipeline.failed(failure_of(&error));
        }
    }
}

/// A connection over which the server has answered.
async fn ask(pipeline: &Pipeline) -> Result<Box<dyn Link>, UpstreamError> {
    let url: Arc<str> = format!("{}/nix-cache-info", pipeline.origin.label).into();
    let mut link = pipeline.dial().await?;
    let after = pipeline.config.silence;
    let exchange = async {
        let request = super::exchange::spell(pipeline, "nix-cache-info");
        let broken = |_| UpstreamError::Closed { url: Arc::clone(&url) };
        link.write_all(request.as_bytes()).await.map_err(broken)?;
        link.flush().await.map_err(broken)?;
        let mut reader = ResponseReader::default();
        let mut input = BytesMut::new();
        loop {
            let ended = link.read_buf(&mut input).await.map_err(broken)? == 0;
            let answer = reader
                .next(&mut input, ended)
                .map_err(|problem| UpstreamError::Protocol { url: Arc::clone(&url), problem })?;
            match answer {
                Some(answer) => return Ok(answer),
                None if ended => return Err(broken(std::io::ErrorKind::UnexpectedEof.into())),
                None => {}
            }
        }
    };
    let answer = match timeout(after, exchange).await {
        Ok(answer) => answer?,
        Err(_) => {
            return Err(UpstreamError::Silent { url, after, during: "it was being probed" });
        }
    };
    if answer.status >= 500 {
        return Err(UpstreamError::Status { url, status: answer.status });
    }
    Ok(if answer.keep_alive { link } else { pipeline.dial().await? })
}
