//! Substitute servers: whether they answer, and what time they have.

use super::Finding;
use crate::config::{Config, ModeName};
use futures::future::join_all;
use std::time::{Duration, Instant, SystemTime};
use url::Url;

/// How long a server may take: guix would long have gone on.
const PATIENCE: Duration = Duration::from_secs(10);

/// How far the clock may be off before certificates and lists seem expired or not yet valid.
const SKEW: Duration = Duration::from_secs(120);

/// What a server said, and how far its clock is from ours, in seconds.
struct Answer {
    millis: u128,
    skew_s: Option<i64>,
}

/// Asks all servers, and compares clocks.
pub async fn check(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "upstream";
    if config.upstreams.is_empty() || config.upstream_mode == ModeName::SwarmOnly {
        let clock = Finding::note("clock", "not compared: no server is asked for the time");
        return vec![Finding::note(CHECK, "none is used"), clock];
    }
    let answers = join_all(config.upstreams.iter().map(ask)).await;
    let mut findings = Vec::new();
    for (url, answer) in config.upstreams.iter().zip(&answers) {
        findings.push(match answer {
            Ok(answer) => Finding::ok(CHECK, format!("{url} answers in {} ms", answer.millis)),
            Err(error) => {
                let advice = "look at this machine's way to the internet; if the server is gone for \
                              good, name others with --upstream";
                Finding::problem(CHECK, format!("{url} doesn't answer: {error}"), advice)
            }
        });
    }
    // One server may itself be wrong.
    let mut skews: Vec<i64> =
        answers.iter().filter_map(|answer| answer.as_ref().ok()?.skew_s).collect();
    skews.sort_by_key(|skew| skew.abs());
    findings.push(clock(skews.first().copied()));
    findings
}

fn clock(skew_s: Option<i64>) -> Finding {
    const CHECK: &str = "clock";
    match skew_s {
        None => Finding::note(CHECK, "not compared: no server has told the time"),
        Some(skew) if skew.unsigned_abs() > SKEW.as_secs() => {
            let way = if skew > 0 { "behind" } else { "ahead" };
            let found = format!("{} s {way} that of the servers", skew.abs());
            let advice = "set it, best by NTP: certificates and seed lists are judged by it";
            Finding::problem(CHECK, found, advice)
        }
        Some(skew) => Finding::ok(CHECK, format!("within {} s of the servers'", skew.abs().max(1))),
    }
}

async fn ask(url: &Url) -> Result<Answer, String> {
    let started = Instant::now();
    let told = |error: reqwest::Error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        format!("{error}{}", cause.unwrap_or_default())
    };
    let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().map_err(told)?;
    let base = url.as_str().trim_end_matches('/');
    let answer = client.get(format!("{base}/nix-cache-info")).send().await.map_err(told)?;
    let answer = answer.error_for_status().map_err(told)?;
    let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
    Ok(Answer { millis: started.elapsed().as_millis(), skew_s: date.map(seconds_from_now) })
}

fn seconds_from_now(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::now()) {
        Ok(later) => i64::try_from(later.as_secs()).unwrap_or(i64::MAX),
        Err(earlier) => -i64::try_from(earlier.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_clock_that_is_off_is_a_problem_with_advice() {
        for (skew, verdict) in [
            (0, Verdict::Ok),
            (-30, Verdict::Ok),
            (3600, Verdict::Problem),
            (-121, Verdict::Problem),
        ] {
            let finding = clock(Some(skew));
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert_eq!(finding.advice.is_some(), verdict == Verdict::Problem);
        }
        assert!(clock(Some(3600)).found.contains("behind"), "the servers are later");
        assert_eq!(clock(None).verdict, Verdict::Note);
    }
}
