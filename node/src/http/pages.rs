//! The small answers: `/nix-cache-info`, `/healthz`, `/metrics`, `/api/status` and the
//! dashboard.

use super::HttpConfig;
use super::connection::Connection;
use super::request::Request;
use super::response::Head;
use super::route::Route;
use crate::metrics::OPENMETRICS_TYPE;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use sha2::{Digest, Sha256};

/// The dashboard, with its style and script inside: it needs nothing from elsewhere.
const DASHBOARD: &str = include_str!("dashboard.html");

/// What is the same for every request.
pub(super) struct Pages {
    cache_info: String,
    dashboard_policy: String,
}

impl Pages {
    pub fn new(config: &HttpConfig) -> Self {
        Self {
            cache_info: format!(
                "StoreDir: {}\nWantMassQuery: 1\nPriority: {}\n",
                config.store_dir, config.priority
            ),
            dashboard_policy: content_policy(DASHBOARD),
        }
    }
}

impl Connection {
    pub(super) fn answer_page(&mut self, request: &Request, page: &Route) {
        match page {
            Route::CacheInfo => {
                let text = self.site.pages.cache_info.clone();
                self.answer_own(request, "text/x-nix-cache-info", &[], &text);
            }
            Route::Health => self.answer_text(request, StatusCode::OK, "ok\n"),
            Route::Metrics => match self.site.metrics.encode() {
                Ok(text) => self.answer_own(request, OPENMETRICS_TYPE, &[], &text),
                Err(_) => self.answer_text(
                    request,
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "a metric could not be written\n",
                ),
            },
            Route::Status => self.answer_status(request),
            Route::Dashboard => {
                let policy = self.site.pages.dashboard_policy.clone();
                let fields = [
                    ("Content-Security-Policy", policy.as_str()),
                    ("Referrer-Policy", "no-referrer"),
                    ("X-Frame-Options", "DENY"),
                ];
                self.answer_own(request, "text/html; charset=utf-8", &fields, DASHBOARD);
            }
            Route::Unknown | Route::Narinfo(_) | Route::Nar(..) | Route::File(_) => {
                self.answer_text(request, StatusCode::NOT_FOUND, "there is nothing here\n");
            }
        }
    }

    fn answer_status(&mut self, request: &Request) {
        let mut report = self.site.backend.status();
        if !self.is_local {
            // What this machine is fetching is nobody else's business.
            report.fetches.clear();
            report.acl.problem = None;
        }
        match serde_json::to_string(&report) {
            Ok(json) => self.answer_own(request, "application/json", &[], &json),
            Err(_) => self.answer_text(
                request,
                StatusCode::INTERNAL_SERVER_ERROR,
                "the status could not be written\n",
            ),
        }
    }

    fn answer_own(
        &mut self,
        request: &Request,
        content_type: &str,
        fields: &[(&str, &str)],
        body: &str,
    ) {
        self.site.count(StatusCode::OK);
        let mut head = Head::new(&mut self.out, StatusCode::OK, body.len() as u64, &mut self.date)
            .field("Content-Type", content_type)
            .field("Cache-Control", "no-store")
            .field("X-Content-Type-Options", "nosniff")
            .field("Cross-Origin-Resource-Policy", "same-origin");
        for (name, value) in fields {
            head = head.field(name, value);
        }
        head.end(request);
        if !request.head_only {
            self.out.extend_from_slice(body.as_bytes());
        }
    }
}

/// Allows exactly the style and the script that stand in `page`, and requests to this server.
fn content_policy(page: &str) -> String {
    let hash_of = |element: &str| {
        let inside = page
            .split_once(&format!("<{element}>"))
            .and_then(|(_, rest)| rest.split_once(&format!("</{element}>")))
            .map_or("", |(inside, _)| inside);
        STANDARD.encode(Sha256::digest(inside))
    };
    format!(
        "default-src 'none'; connect-src 'self'; img-src data:; style-src 'sha256-{}'; \
         script-src 'sha256-{}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("style"),
        hash_of("script")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dashboard_refers_to_nothing_elsewhere() {
        assert_eq!(DASHBOARD.matches("<style>").count(), 1);
        assert_eq!(DASHBOARD.matches("<script>").count(), 1);
        // Attributes could carry styles and handlers that the policy would block.
        for attribute in [" style=", " onclick=", " onload=", "http://", "https://"] {
            let elsewhere = DASHBOARD.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains(attribute), "{attribute}");
        }
    }

    #[test]
    fn the_policy_names_hashes() {
        let policy = content_policy("<style>a</style><script>b</script>");
        assert!(policy.contains("style-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='"));
        assert!(
            policy.contains("script-src 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='")
        );
    }
}
