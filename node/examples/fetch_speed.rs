//! Measures how fast one process gives raw pieces to another over the loopback.
//!
//! `fetch_speed` runs both sides as processes of their own and prints MiB/s and processor seconds
//! per GiB of both together, for TCP with TLS and for QUIC. `fetch_speed serve ADDRESS` and
//! `fetch_speed fetch ADDRESS` are the two sides.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use narswarm_node::net::{Held, Net, NetConfig, Responder, ServedNar};
use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::piece::{PieceLayout, PieceList, hash_piece};
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::fetch::{Encoding, FetchRequest, FetchResponse, Frame};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

const NAR: NarHash = NarHash([1; 32]);
const NAR_SIZE: u64 = 1 << 30;
/// Pieces asked for at a time: 16 MiB.
const WINDOW: u32 = 64;
const ROUNDS: u32 = 4;

struct Same {
    list: PieceList,
    piece: Bytes,
}

impl ServedNar for Same {
    fn root(&self) -> Root {
        self.list.root(&NAR)
    }

    fn list(&self) -> &PieceList {
        &self.list
    }

    fn frame(&self, _: u32) -> std::io::Result<Option<Frame>> {
        Ok(Some(Frame { encoding: Encoding::Raw, bytes: self.piece.clone() }))
    }
}

struct Holder(Arc<Same>);

impl Responder for Holder {
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>> {
        vec![None; hashes.len()]
    }

    fn open(&self, _: libp2p::PeerId, _: &NarHash) -> Option<Arc<dyn ServedNar>> {
        Some(self.0.clone())
    }
}

async fn start(listen: Vec<Multiaddr>) -> Result<Net> {
    let layout = PieceLayout::new(NAR_SIZE).context("layout")?;
    let octets: Vec<u8> = (0..layout.piece_size()).map(|i| (i % 251) as u8).collect();
    let piece = Bytes::from(octets);
    let hashes = vec![hash_piece(&piece); layout.piece_count() as usize];
    let nar = Same { list: PieceList::new(layout, hashes)?, piece };
    let mut config = NetConfig::new(Keypair::generate_ed25519());
    config.listen = listen;
    Ok(Net::start(config, Arc::new(Holder(Arc::new(nar)))).await?.0)
}

/// Serves until standard input ends.
async fn serve(address: Multiaddr) -> Result<()> {
    let net = start(vec![address]).await?;
    println!("{}", net.listen_addresses()[0]);
    tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await??;
    println!("{:.3}", cpu_seconds()?);
    Ok(())
}

async fn fetch(address: Multiaddr) -> Result<()> {
    let Some(Protocol::P2p(peer)) = address.iter().last() else { bail!("no peer id") };
    let net = start(vec![]).await?;
    net.learn(peer, [address]);
    let (requests, mut responses) = net.open_fetch(peer).await?;
    let pieces = PieceLayout::new(NAR_SIZE).context("layout")?.piece_count();
    let (mut octets, mut first) = (0u64, None);
    let begin = Instant::now();
    for slot in 0..ROUNDS {
        let open =
            FetchRequest::Open { slot, nar_hash: NAR, nar_size: NAR_SIZE, first: 0, count: WINDOW };
        requests.send(open).await?;
        let (mut wanted, mut got) = (WINDOW, 0);
        while got < pieces {
            let response = responses.next().await.context("the session ended")??;
            let FetchResponse::Piece { frame, .. } = response else { continue };
            first.get_or_insert_with(|| begin.elapsed());
            octets += frame.bytes.len() as u64;
            got += 1;
            // Asked for in eights, as a fetch would when a reader moves on.
            if wanted < pieces && got.is_multiple_of(8) {
                let want = FetchRequest::Want { slot, first: wanted, count: 8 };
                requests.send(want).await?;
                wanted += 8;
            }
        }
        requests.send(FetchRequest::Close { slot }).await?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let (mib, gib) = (octets as f64 / f64::from(1 << 20), octets as f64 / f64::from(1 << 30));
    println!(
        "{:.0} MiB/s ({:.0} MB/s), first piece after {:.1} ms, asker {:.2} CPU s/GiB, {} MiB at most",
        mib / seconds,
        octets as f64 / 1e6 / seconds,
        first.unwrap_or_default().as_secs_f64() * 1e3,
        cpu_seconds()? / gib,
        peak_mib()?,
    );
    net.shutdown().await;
    Ok(())
}

/// Processor time of this process so far.
fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // The kernel reports in hundredths of a second on every common platform.
    Ok(ticks as f64 / 100.0)
}

/// Most memory that this process has had resident.
fn peak_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse::<u64>()? / 1024)
}

fn both(address: &str) -> Result<()> {
    let this = std::env::current_exe()?;
    let mut server = Command::new(&this)
        .args(["serve", address])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(server.stdout.take().context("a pipe")?).lines();
    let at = lines.next().context("no address")??;
    let fetched = Command::new(&this).args(["fetch", &at]).output()?;
    drop(server.stdin.take());
    let cpu: f64 = lines.next().context("no time")??.parse()?;
    server.wait()?;
    let gib = f64::from(ROUNDS) * NAR_SIZE as f64 / f64::from(1 << 30);
    let report = String::from_utf8_lossy(&fetched.stdout);
    println!("{address}: {}, holder {:.2} CPU s/GiB", report.trim(), cpu / gib);
    if !fetched.status.success() {
        bail!("{}", String::from_utf8_lossy(&fetched.stderr));
    }
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [verb, address] if verb == "serve" => serve(address.parse()?).await,
        [verb, address] if verb == "fetch" => fetch(address.parse()?).await,
        _ => {
            for _ in 0..3 {
                both("/ip4/127.0.0.1/tcp/0")?;
                both("/ip4/127.0.0.1/udp/0/quic-v1")?;
            }
            Ok(())
        }
    }
}
