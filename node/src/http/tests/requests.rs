//! Single requests, proper and odd.

use super::*;

#[tokio::test]
async fn narinfos_say_how_long_they_hold() {
    let shim = Shim::start().await;
    let hit = shim.ask(&narinfo_request(0)).await;
    assert_eq!(hit.field("Content-Type"), Some("application/x-nix-narinfo"));
    assert_eq!(hit.field("Cache-Control"), Some("max-age=3600"));
    assert!(hit.text().starts_with("StorePath: /gnu/store/"));
    let miss = shim.ask(&narinfo_request(2)).await;
    assert_eq!((miss.status, miss.field("Cache-Control")), (404, Some("max-age=10")));
    assert_eq!(miss.field("Content-Length"), Some("0"));
    let (hits, misses) = (shim.metrics.narinfo_hits.get(), shim.metrics.narinfo_misses.get());
    assert_eq!((hits, misses), (1, 1));
}

#[tokio::test]
async fn says_what_store_it_serves() {
    let config = HttpConfig { store_dir: "/nix/store".into(), ..HttpConfig::default() };
    let shim = Shim::start_with(config, Twin::default()).await;
    let info = shim.ask(&get("/nix-cache-info")).await;
    assert_eq!(info.text(), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
}

#[tokio::test]
async fn shows_its_state() {
    let shim = Shim::start().await;
    assert_eq!(shim.ask(&get("/healthz")).await.text(), "ok\n");
    let status = shim.ask(&get("/api/status")).await;
    assert_eq!(status.field("Content-Type"), Some("application/json"));
    let report: StatusReport = serde_json::from_slice(&status.body).expect("a report");
    assert_eq!((report.role.as_str(), report.fetches.len()), ("workstation", 1));
    let metrics = shim.ask(&get("/metrics")).await;
    assert!(metrics.text().contains("narswarm_http_connections 1\n"));
    assert!(metrics.text().ends_with("# EOF\n"));
    let page = shim.ask(&get("/")).await;
    assert!(page.text().contains("<h1>narswarm</h1>"));
    let policy = page.field("Content-Security-Policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; connect-src 'self'"), "{policy}");
    for answer in [&status, &metrics, &page] {
        assert_eq!(answer.field("Access-Control-Allow-Origin"), None);
        assert_eq!(answer.field("X-Content-Type-Options"), Some("nosniff"));
    }
}

#[tokio::test]
async fn foreign_host_names_are_refused() {
    let shim = Shim::start().await;
    for host in ["evil.example", "evil.example:8710", "192.168.0.1", ""] {
        for path in ["/api/status", "/nix-cache-info", "/"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let answer = shim.ask(&request).await;
            assert_eq!(answer.status, 421, "{host}{path}");
            assert!(answer.text().contains("http.host_names"));
        }
    }
    for host in ["localhost", "127.0.0.1:1", "[::1]:80", "LOCALHOST"] {
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(shim.ask(&request).await.status, 200, "{host}");
    }
    assert_eq!(shim.ask("GET /healthz HTTP/1.1\r\n\r\n").await.status, 400);
}

#[tokio::test]
async fn odd_paths_are_answered_and_harm_nothing() {
    let shim = Shim::start().await;
    let mut client = shim.client().await;
    for path in [
        "/../../etc/passwd",
        "/nar/..%2f..%2fetc%2fpasswd",
        "/nar/%00",
        "/%",
        "/nar/%zz",
        "//",
        "/x.narinfo",
        "/EEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEE.narinfo",
        "/nar/gzip",
        "/?",
        "/#",
        "/\u{e9}.narinfo",
    ] {
        client.send(get(path).as_bytes()).await;
        let answer = client.answer(false).await;
        assert!(answer.status == 404 || path == "/?", "{path}: {}", answer.status);
    }
    client.send(get("http://localhost:8710/healthz").as_bytes()).await;
    assert_eq!(client.answer(false).await.status, 400);
    client.send(narinfo_request(0).as_bytes()).await;
    assert_eq!(client.answer(false).await.status, 200, "the connection is still good");
    for broken in
        ["GET /\0 HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\0\n", "hello\r\n\r\n", "GET /\r\n\r\n"]
    {
        let mut client = shim.client().await;
        client.send(broken.as_bytes()).await;
        assert_eq!(client.answer(false).await.status, 400, "{broken:?}");
        assert_eq!(client.until_end().await, (Vec::new(), None), "{broken:?}");
    }
}

#[tokio::test]
async fn only_get_and_head_without_a_body() {
    let shim = Shim::start().await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "BREW"] {
        let answer =
            shim.ask(&format!("{method} /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        assert_eq!((answer.status, answer.field("Allow")), (405, Some("GET, HEAD")), "{method}");
    }
    // The body must never be taken for the next request.
    let mut client = shim.client().await;
    let hidden = narinfo_request(0);
    let request = get_with("/healthz", &format!("Content-Length: {}", hidden.len())) + &hidden;
    client.send(request.as_bytes()).await;
    let answer = client.answer(false).await;
    assert_eq!((answer.status, answer.field("Connection")), (400, Some("close")));
    assert_eq!(client.until_end().await, (Vec::new(), None));
    assert!(shim.twin.batches.borrow().is_empty());
}

#[tokio::test]
async fn speaks_http_1_0() {
    let shim = Shim::start().await;
    let mut client = shim.client().await;
    client.send(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert_eq!(client.answer(false).await.field("Connection"), Some("keep-alive"));
    client.send(b"HEAD /healthz HTTP/1.0\r\n\r\n").await;
    let answer = client.answer(true).await;
    assert_eq!(
        (answer.field("Connection"), answer.field("Content-Length")),
        (Some("close"), Some("3"))
    );
    assert_eq!(client.until_end().await, (Vec::new(), None));
}

#[tokio::test]
async fn head_is_answered_everywhere_without_a_body() {
    let shim = Shim::start().await;
    let mut client = shim.client().await;
    for path in ["/", "/metrics", "/api/status", "/nix-cache-info", "/nowhere", "/nar/x"] {
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await;
        let answer = client.answer(true).await;
        assert!(answer.field("Content-Length").is_some_and(|length| length != "0"), "{path}");
    }
    assert!(client.buffer.is_empty());
}

#[tokio::test]
async fn keeps_a_connection_for_thousands_of_requests() {
    let shim = Shim::start().await;
    let mut client = shim.client().await;
    for n in 0..3000 {
        client.send(narinfo_request(n).as_bytes()).await;
        assert_eq!(client.answer(false).await.field("Connection"), None);
    }
}
