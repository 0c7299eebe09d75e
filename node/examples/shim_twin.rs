//! The shim with a backend in memory, and a small pipelining client: for measuring the shim
//! itself beside another HTTP server.
//!
//! ```text
//! shim_twin serve DIR             # DIR holds HASH.narinfo files and nar/ITEM files
//! shim_twin narinfos ADDR DIR N   # asks for N narinfos of DIR in one burst, and tells the time
//! shim_twin nar ADDR PATH         # reads a nar to its end, and tells the speed
//! ```

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use futures::{StreamExt, stream};
use narswarm_node::http::{
    Backend, HttpConfig, NarForm, NarRefusal, NarReply, NarWant, NarinfoAnswer, StatusReport, serve,
};
use narswarm_node::metrics::Metrics;
use narswarm_protocol::store_path::{ItemName, StoreHash};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a disk holds, in memory.
struct Memory {
    narinfos: HashMap<StoreHash, Bytes>,
    nars: HashMap<String, Bytes>,
}

impl Memory {
    fn load(directory: &Path) -> std::io::Result<Self> {
        let mut memory = Self { narinfos: HashMap::new(), nars: HashMap::new() };
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            if let Ok(hash) = StoreHash::parse(stem.as_bytes()) {
                memory.narinfos.insert(hash, std::fs::read(&path)?.into());
            }
        }
        for entry in std::fs::read_dir(directory.join("nar")).into_iter().flatten() {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                memory.nars.insert(name, std::fs::read(entry.path())?.into());
            }
        }
        Ok(memory)
    }
}

#[async_trait]
impl Backend for Memory {
    fn resolve(&self, hashes: &[StoreHash]) -> Vec<BoxFuture<'static, NarinfoAnswer>> {
        let answer = |hash: &StoreHash| match self.narinfos.get(hash) {
            Some(body) => {
                NarinfoAnswer::Hit { body: body.clone(), max_age: Duration::from_secs(3600) }
            }
            None => NarinfoAnswer::Miss { max_age: Duration::from_secs(10) },
        };
        hashes.iter().map(|hash| ready(answer(hash)).boxed()).collect()
    }

    async fn nar(&self, item: &ItemName, _: NarForm, _: NarWant) -> Result<NarReply, NarRefusal> {
        let bytes = self.nars.get(item.as_str()).ok_or(NarRefusal::NotFound)?.clone();
        let length = bytes.len() as u64;
        let chunks = (0..bytes.len())
            .step_by(256 * 1024)
            .map(move |at| Ok(bytes.slice(at..bytes.len().min(at + 256 * 1024))));
        Ok(NarReply { length, range: None, nar_hash: None, body: stream::iter(chunks).boxed() })
    }

    fn status(&self) -> StatusReport {
        StatusReport { role: "seed".into(), ..StatusReport::default() }
    }
}

#[tokio::main]
async fn serve_memory(directory: &Path) -> anyhow::Result<()> {
    let memory = Arc::new(Memory::load(directory)?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    serve(listener, memory, Arc::new(Metrics::new()), HttpConfig::default(), Default::default())
        .await?;
    Ok(())
}

/// Asks as guix does, a thousand at a time, and reads with a large buffer.
fn ask_narinfos(address: &str, directory: &Path, count: usize) -> anyhow::Result<()> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".narinfo") {
            names.push(name);
        }
    }
    names.sort();
    let request = |name: &String| {
        format!("GET /{name} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: GNU Guile\r\n\r\n")
    };
    let requests: Vec<String> = names.iter().cycle().take(count).map(request).collect();
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut from, mut filled, mut bytes) = (0, 0, 0);
    let began = Instant::now();
    for burst in requests.chunks(1000) {
        stream.write_all(burst.concat().as_bytes())?;
        for _ in burst {
            let length = loop {
                if let Some(length) = answer_length(&buffer[from..filled]) {
                    break length;
                }
                buffer.copy_within(from..filled, 0);
                (from, filled) = (0, filled - from);
                let read = stream.read(&mut buffer[filled..])?;
                anyhow::ensure!(read > 0, "the server closed the connection");
                filled += read;
            };
            bytes += length;
            from += length;
        }
    }
    println!("{:.3} ms, {bytes} bytes", began.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// Length of the answer that `bytes` begin with, if it is whole.
fn answer_length(bytes: &[u8]) -> Option<usize> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(head_length)) = head.parse(bytes) else { return None };
    let field = head.headers.iter().find(|f| f.name.eq_ignore_ascii_case("content-length"))?;
    let body: usize = std::str::from_utf8(field.value).ok()?.parse().ok()?;
    (bytes.len() >= head_length + body).then_some(head_length + body)
}

fn read_nar(address: &str, path: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let began = Instant::now();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => total += read,
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{:.0} MB/s, {total} bytes", total as f64 / seconds / 1e6);
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", directory] => serve_memory(Path::new(directory)),
        ["narinfos", address, directory, count] => {
            ask_narinfos(address, Path::new(directory), count.parse()?)
        }
        ["nar", address, path] => read_nar(address, path),
        _ => anyhow::bail!("usage: shim_twin serve DIR | narinfos ADDR DIR N | nar ADDR PATH"),
    }
}
