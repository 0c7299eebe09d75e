//! What a seed of ten million items costs (T11): messages to the DHT a day, the time and memory that
//! its filter takes, its octets, and those of a day's changes.
//!
//! Everything is counted with the code of production; the DHT's nodes are ones that answer at once.

use anyhow::ensure;
use clap::Parser;
use narswarm_protocol::announce::{
    Action, Contact, Discovery, DiscoveryConfig, ItemKey, Message, NodeId, Position, Reply,
    mirror_key,
};
use narswarm_protocol::fetch::Time;
use narswarm_protocol::filter::publisher::{Content, Publisher};
use narswarm_protocol::filter::{Delta, Filter, leading};
use narswarm_protocol::limits::{FILTER_EVERY, MAX_PROVIDER_RECORDS_PER_PEER};
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::voucher::VoucherSigner;
use narswarm_tests::bench::process::resident_bytes;
use std::time::{Duration, Instant};

/// A day.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Items of other people that are looked for, to see how often the filter is wrong.
const OTHERS: u64 = 1_000_000;

/// Most messages of a seed for each of its items, by T11.
const MOST_MESSAGES: f64 = 0.1;

/// A seed's cost.
#[derive(Debug, Parser)]
struct Args {
    /// Items that it holds.
    #[arg(long, default_value_t = 10_000_000)]
    items: u64,
    /// Items that come in a day.
    #[arg(long, default_value_t = 100_000)]
    daily: u64,
    /// Nodes of the DHT.
    #[arg(long, default_value_t = 10_000)]
    nodes: u64,
    /// Build farms of whose items it holds most.
    #[arg(long, default_value_t = 2)]
    farms: u8,
}

fn key(number: u64) -> ItemKey {
    let mut octets = [0; 20];
    octets[..8].copy_from_slice(&number.to_le_bytes());
    ItemKey::of(&StoreHash(octets))
}

fn resident_mib() -> anyhow::Result<f64> {
    Ok(resident_bytes(std::process::id())? as f64 / f64::from(1 << 20))
}

/// Messages that a seed sends in a day which begins when it has told everything once; those of the
/// first day; and how many items were announced one by one.
fn messages(args: &Args, one_by_one: u64) -> (u64, u64) {
    let config = DiscoveryConfig { seed: 7, max_contacts: 2048, explores: true };
    let mut discovery = Discovery::new(config, Time::default());
    let contacts: Vec<_> = (0..args.nodes)
        .map(|number| Contact {
            node: NodeId(number),
            position: Position::of(&number.to_be_bytes()),
            network: Some(number),
        })
        .collect();
    contacts.iter().for_each(|contact| discovery.handle_contact(*contact));
    for farm in 0..args.farms {
        let key = ItemKey::from_provider_key(&mirror_key(&[farm; 32]));
        discovery.handle_held(key, 0, Time::default());
    }
    (0..one_by_one).for_each(|number| discovery.handle_held(key(number), 0, Time::default()));
    let (mut now, mut sent, mut first_day) = (Time::default(), 0, 0);
    while now.0 < DAY * 3 {
        while let Some(action) = discovery.poll_action(now) {
            let Action::Ask { request, bucket, message, .. } = action else { continue };
            sent += 1;
            let known = match message {
                Message::Announce { keys, .. } => vec![1; keys.len()],
                _ => Vec::new(),
            };
            let mut nearer = contacts.clone();
            nearer.sort_by_key(|contact| contact.position.distance(bucket.position()));
            nearer.truncate(16);
            let reply = Reply { nearer, known, providers: Vec::new() };
            discovery.handle_reply(request, &reply, now);
        }
        if now.0 < DAY {
            first_day = sent;
        }
        let next = discovery.poll_timeout(now).map_or(Time(DAY * 3), |at| at);
        now = Time(next.0.max(now.0 + Duration::from_millis(1)));
    }
    (first_day, (sent - first_day) / 2)
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    println!("a seed of {} items, {} more a day", args.items, args.daily);
    let cap = args.items.min(MAX_PROVIDER_RECORDS_PER_PEER as u64 - u64::from(args.farms));
    for one_by_one in [0, cap] {
        let (first, daily) = messages(&args, one_by_one);
        let each = daily as f64 / args.items as f64;
        println!(
            "  {one_by_one} of them announced one by one, {} nodes: {first} messages to the DHT on \
             the first day, {daily} a day later: {each:.6} an item",
            args.nodes,
        );
        ensure!(each <= MOST_MESSAGES, "more than {MOST_MESSAGES} messages an item");
    }

    let before = resident_mib()?;
    let begin = Instant::now();
    let mut all: Vec<u32> = (0..args.items).map(|number| leading(&key(number))).collect();
    println!("  keys: {:.1} s, {:.0} MiB", begin.elapsed().as_secs_f64(), resident_mib()? - before);
    let begin = Instant::now();
    let mut publisher = Publisher::new(1, &mut all);
    let took = begin.elapsed();
    drop(all);
    let shape = publisher.filter().shape();
    println!(
        "  filter: {:.2} s, {} octets ({:.2} bits an item) in {} parts; {:.0} MiB held afterwards",
        took.as_secs_f64(),
        publisher.filter().octets().len(),
        publisher.filter().octets().len() as f64 * 8.0 / args.items as f64,
        shape.parts(),
        resident_mib()? - before,
    );

    let others = args.items * 2..args.items * 2 + OTHERS;
    let keys: Vec<_> = others.map(key).collect();
    let begin = Instant::now();
    let wrong = keys.iter().filter(|key| publisher.filter().says_yes(key)).count();
    println!(
        "  one look: {:.2} µs; yes to {:.2} % of what isn't held",
        begin.elapsed().as_secs_f64() * 1e6 / OTHERS as f64,
        wrong as f64 * 100.0 / OTHERS as f64,
    );
    let held = (0..args.items).step_by(997).all(|number| publisher.filter().says_yes(&key(number)));
    ensure!(held, "the filter says no to something that is held");

    let signer = VoucherSigner::new(&[7; 32]);
    let rounds = DAY.as_secs() / FILTER_EVERY.as_secs();
    let morning = publisher.filter().clone();
    let start = publisher.head(&signer);
    let (mut octets, mut most, mut took) = (0, 0, Duration::ZERO);
    for round in 0..rounds {
        let head = *publisher.head(&signer).unverified();
        let (from, to) = (args.daily * round / rounds, args.daily * (round + 1) / rounds);
        let begin = Instant::now();
        (from..to).for_each(|n| publisher.handle_held(&key(args.items + n)));
        publisher.publish();
        took += begin.elapsed();
        let have = Some((head.series, head.generation));
        if let Content::Changes(changes) = publisher.content(have) {
            octets += changes.len();
            most = most.max(changes.len());
        }
    }
    println!(
        "  a day's changes of {} items: {octets} octets for whoever asks every {} minutes ({most} at \
         most at once), {:.1} ms to make each",
        args.daily,
        FILTER_EVERY.as_secs() / 60,
        took.as_secs_f64() * 1e3 / rounds as f64,
    );
    let have = Some((start.unverified().series, start.unverified().generation));
    let Content::Changes(changes) = publisher.content(have) else {
        anyhow::bail!("a day's changes are longer than the whole");
    };
    let begin = Instant::now();
    let delta = Delta::from_octets(shape, &changes)?;
    let evening = morning.apply(&delta)?;
    println!(
        "  {} octets for whoever asks once a day, {:.0} ms to apply",
        changes.len(),
        begin.elapsed().as_secs_f64() * 1e3,
    );
    ensure!(&evening == publisher.filter(), "the changes make another filter");
    let begin = Instant::now();
    Filter::from_octets(shape, evening.octets().as_ref().clone())?;
    println!("  checking a whole one: {:.0} ms", begin.elapsed().as_secs_f64() * 1e3);
    println!("  resident at the end: {:.0} MiB", resident_mib()?);
    Ok(())
}
