//! What needs a second process: the cost of many connections without their other ends, and what
//! clients see when the node is killed.

use super::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Connections of the idle test; their clients live in the child.
const IDLE_CONNECTIONS: usize = 10_000;

/// Descriptors of the child that runs out of them.
const FEW_DESCRIPTORS: u64 = 64;

/// Tells a child that it is one, and what it needs.
const CHILD: &str = "NARSWARM_TEST_CHILD";

/// What a child prints before it tells that it is ready.
const READY: &str = "child ready: ";

/// A test of this module that runs in a process of its own.
struct Running {
    process: Child,
    output: BufReader<ChildStdout>,
    told: String,
}

impl Running {
    fn start(test: &str, argument: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--ignored", "--nocapture", "--exact"])
            .arg(format!("http::tests::children::{test}"))
            .env(CHILD, argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut output = BufReader::new(process.stdout.take().expect("its output"));
        let mut line = String::new();
        let told = loop {
            line.clear();
            assert_ne!(output.read_line(&mut line).expect("text"), 0, "the child is not ready");
            if let Some((_, told)) = line.split_once(READY) {
                break told.trim().to_owned();
            }
        };
        Self { process, output, told }
    }

    /// Lets the child come to its end.
    fn finish(mut self) {
        drop(self.process.stdin.take());
        let mut rest = Vec::new();
        self.output.read_to_end(&mut rest).expect("its output");
        assert!(self.process.wait().expect("the child's end").success());
    }
}

/// In a child: tells the parent that it can go on, and waits for it.
fn ready(tell: &str) {
    println!("\n{READY}{tell}");
    let _ = std::io::stdin().read(&mut [0]);
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[test]
#[ignore = "runs as the child of another test"]
fn child_holds_connections() {
    let Ok(address) = std::env::var(CHILD) else { return };
    raise_descriptor_limit().expect("descriptors");
    let request = narinfo_request(0);
    let mut held = Vec::with_capacity(IDLE_CONNECTIONS);
    for _ in 0..IDLE_CONNECTIONS {
        let mut client = std::net::TcpStream::connect(&address).expect("a connection");
        client.write_all(request.as_bytes()).expect("sent");
        let mut answer = [0; 12];
        client.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
        held.push(client);
    }
    ready("");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_cost_little() {
    let descriptors = raise_descriptor_limit().unwrap_or(0);
    if descriptors < IDLE_CONNECTIONS as u64 + 100 {
        eprintln!("SKIPPED: only {descriptors} descriptors are allowed here");
        return;
    }
    let config = HttpConfig { max_connections: IDLE_CONNECTIONS + 10, ..HttpConfig::default() };
    let shim = Shim::start_with(config, Twin::default()).await;
    assert_eq!(shim.ask(&get("/healthz")).await.status, 200);
    let before = resident_bytes();
    let address = shim.address.to_string();
    let starting =
        tokio::task::spawn_blocking(move || Running::start("child_holds_connections", &address));
    let child = within(starting).await.expect("a child");
    assert_eq!(shim.ask(&narinfo_request(1)).await.status, 200);
    assert!(shim.metrics.http_connections.get() >= IDLE_CONNECTIONS as i64);
    let each = resident_bytes().saturating_sub(before) / IDLE_CONNECTIONS as u64;
    eprintln!("{each} bytes of memory for each of {IDLE_CONNECTIONS} idle connections");
    // 4,096 connections, the default limit, then take less than 25 MB.
    assert!(each < 6 * 1024, "{each} bytes each");
    child.finish();
    within(async {
        while shim.metrics.http_connections.get() > 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "runs as the child of another test"]
async fn child_serves_half_a_body() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    let shim = Shim::start().await;
    let feed = shim.twin.feed("a", 1000);
    feed.send(Ok(pattern(100))).await.expect("fed");
    let address = shim.address.to_string();
    tokio::task::spawn_blocking(move || ready(&address)).await.expect("told");
}

#[tokio::test]
async fn killing_the_node_resets_a_body_under_way() {
    let starting = tokio::task::spawn_blocking(|| Running::start("child_serves_half_a_body", ""));
    let mut child = within(starting).await.expect("a child");
    let stream = TcpStream::connect(&child.told).await.expect("a connection");
    let mut client = Client { stream, buffer: Vec::new() };
    client.send(get(&format!("/nar/{}", item("a"))).as_bytes()).await;
    client.head().await;
    while client.buffer.len() < 100 {
        client.read().await.expect("body");
    }
    child.process.kill().expect("killed");
    child.process.wait().expect("its end");
    let (bytes, end) = client.until_end().await;
    assert_eq!((bytes.len(), end), (100, Some(std::io::ErrorKind::ConnectionReset)));
}

#[tokio::test]
#[ignore = "runs as the child of another test"]
async fn child_serves_with_few_descriptors() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    let shim = Shim::start().await;
    let few = Rlimit { current: Some(FEW_DESCRIPTORS), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, few).expect("fewer descriptors");
    let address = shim.address.to_string();
    tokio::task::spawn_blocking(move || ready(&address)).await.expect("told");
}

#[tokio::test]
async fn a_node_without_descriptors_closes_idle_connections_and_goes_on() {
    let starting =
        tokio::task::spawn_blocking(|| Running::start("child_serves_with_few_descriptors", ""));
    let child = within(starting).await.expect("a child");
    let mut idle = Vec::new();
    for _ in 0..2 * FEW_DESCRIPTORS {
        idle.push(within(TcpStream::connect(&child.told)).await.expect("a connection"));
    }
    let stream = within(TcpStream::connect(&child.told)).await.expect("a connection");
    let mut client = Client { stream, buffer: Vec::new() };
    client.send(get("/healthz").as_bytes()).await;
    assert_eq!(client.answer(false).await.status, 200);
    let mut first = Client { stream: idle.remove(0), buffer: Vec::new() };
    assert_eq!(first.read().await.expect("an end"), 0, "the oldest made room");
    child.finish();
}
