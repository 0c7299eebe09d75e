//! The way into the swarm, and what the running node has found there.

use super::{Finding, Running};
use crate::config::{Config, ModeName};
use crate::entry::list::{ListCache, ListSource, get, unix_seconds};
use crate::entry::probe::{Outcome, try_addresses};
use crate::entry::{Offer, SourceKind, SourceReport, dns::Names};
use crate::node::entry_config;
use libp2p::Multiaddr;
use narswarm_protocol::limits::MAX_ENTRY_DIALS_PER_SOURCE;
use std::time::Duration;

/// How long the addresses of all sources are tried when no node runs.
const PATIENCE: Duration = Duration::from_secs(12);

/// How long a source may take to say what it says.
const SOURCE_PATIENCE: Duration = Duration::from_secs(15);

/// What to do when nobody lets one in.
const NO_ENTRY: &str = "ask somebody for the address of a node and name it with --bootstrap; names \
    (dnsaddr) and signed lists (seed_lists) can be configured as well";

/// Looks at the running node, or tries all sources without one.
pub async fn check(config: &Config, running: Option<&Running>) -> Vec<Finding> {
    if config.upstream_mode == ModeName::UpstreamOnly {
        return vec![Finding::note("entry", "peers are never asked (upstream-only)")];
    }
    match running {
        Some(running) => of_running(config, running),
        None => without_node(config).await,
    }
}

fn of_running(config: &Config, running: &Running) -> Vec<Finding> {
    let (view, status) = (&running.view, &running.status);
    let mut findings: Vec<_> = view.sources.iter().filter_map(judge).collect();
    let connected = view.peers.connected.len();
    if findings.is_empty() && connected == 0 {
        let hint = if config.mdns { " but the local network" } else { "" };
        findings.push(Finding::problem("entry", format!("no source of peers{hint}"), NO_ENTRY));
    }
    findings.push(match connected {
        0 => Finding::problem(
            "peers",
            "none is connected",
            "see what was found of entry; if this machine has just come online, wait a minute",
        ),
        count => Finding::ok("peers", format!("{count} connected, {} known", status.peers.known)),
    });
    let dht = view.dht;
    findings.push(match (dht.nodes, dht.low, dht.high) {
        (Some(nodes), Some(low), Some(high)) => Finding::ok(
            "dht",
            format!("about {nodes} nodes ({low} to {high}), {} in the table", dht.table),
        ),
        _ => Finding::note("dht", "no node of it is known"),
    });
    findings.push(reachability(status));
    findings
}

/// How a source fares; nothing to say of one that is empty and need not be otherwise.
fn judge(source: &SourceReport) -> Option<Finding> {
    const CHECK: &str = "entry";
    let SourceReport { kind, name, addresses, connected, failing, .. } = source;
    let optional = matches!(kind, SourceKind::Remembered | SourceKind::Mdns);
    if *addresses == 0 && optional {
        return None;
    }
    if let Some(error) = &source.error {
        let found = format!("{name}: {error}");
        return Some(Finding::problem(CHECK, found, advice(*kind)));
    }
    if *kind == SourceKind::Mdns {
        return Some(Finding::ok(CHECK, format!("{name}: {addresses} peers")));
    }
    let all_fail = failing == addresses && *addresses > 0;
    if all_fail && *connected == 0 && !optional {
        let last = source.last_failure.as_deref().unwrap_or("nobody answers");
        let found = format!("{name}: none of {addresses} addresses is reached; {last}");
        return Some(Finding::problem(CHECK, found, advice(*kind)));
    }
    let found = format!("{name}: {addresses} addresses, {connected} connected, {failing} failing");
    Some(if optional && all_fail { Finding::note(CHECK, found) } else { Finding::ok(CHECK, found) })
}

fn advice(kind: SourceKind) -> &'static str {
    match kind {
        SourceKind::Bootstrap => {
            "is the address still right, and does a firewall let this machine out? Ask whoever runs \
             the node"
        }
        SourceKind::Dnsaddr => "look the name up with `dig TXT _dnsaddr.NAME`; tell its owner",
        SourceKind::SeedList => {
            "get the list's present address and key from whoever signs it; `narswarm-bootstrap list \
             check` tells more"
        }
        SourceKind::BuiltIn | SourceKind::Remembered | SourceKind::Mdns => NO_ENTRY,
    }
}

fn reachability(status: &crate::http::StatusReport) -> Finding {
    const CHECK: &str = "reachability";
    let external = status.external.join(", ");
    match status.nat.as_str() {
        "open" | "public" => Finding::ok(CHECK, format!("others reach this node at {external}")),
        "restricted" => Finding::problem(
            CHECK,
            "a firewall keeps others out",
            "let in the ports of --listen, TCP and UDP; you can fetch, but give little",
        ),
        "cone" => Finding::note(
            CHECK,
            "behind a NAT in which holes can be punched; a forwarded port would be better",
        ),
        "symmetric" => Finding::problem(
            CHECK,
            "behind a NAT that shows everybody another address: others reach this node only through \
             relays",
            "forward the ports of --listen on the router, or let it be asked for them (upnp)",
        ),
        "private" => Finding::problem(
            CHECK,
            "others don't reach this node",
            "forward the ports of --listen on the router, or let it be asked for them (upnp)",
        ),
        _ => Finding::note(CHECK, "not known: too few peers elsewhere have tried"),
    }
}

/// What a source says, asked without a node.
async fn asked(source: impl Future<Output = Result<Offer, String>>) -> Result<Offer, String> {
    let answer = tokio::time::timeout(SOURCE_PATIENCE, source).await;
    answer.map_err(|_| "no answer in time".to_owned())?
}

async fn without_node(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "entry";
    let entry = entry_config(config);
    let mut offers: Vec<(SourceKind, String, Result<Offer, String>)> = Vec::new();
    if !entry.bootstrap.is_empty() {
        let offer = Offer { addresses: entry.bootstrap.clone(), passed_over: 0 };
        offers.push((SourceKind::Bootstrap, "nodes named by --bootstrap".to_owned(), Ok(offer)));
    }
    let names = Names::new(entry.resolver).map_err(|error| error.to_string());
    for name in &entry.dnsaddr {
        let answer = async {
            let names = names.as_ref().map_err(Clone::clone)?;
            names.dnsaddr(name).await.map_err(|error| error.to_string())
        };
        offers.push((SourceKind::Dnsaddr, name.clone(), asked(answer).await));
    }
    let cache = ListCache::new(entry.cache.clone(), entry.keys.clone());
    for list in &entry.lists {
        let answer = asked(check_list(&cache, list));
        offers.push((SourceKind::SeedList, list.to_string(), answer.await));
    }
    if offers.is_empty() {
        return vec![if config.mdns {
            Finding::note(CHECK, format!("only the local network and earlier peers; {NO_ENTRY}"))
        } else {
            Finding::problem(CHECK, "no source of peers", NO_ENTRY)
        }];
    }
    let mut findings = Vec::new();
    for (kind, name, offer) in offers {
        findings.push(match offer {
            Err(error) => Finding::problem(CHECK, format!("{name}: {error}"), advice(kind)),
            Ok(offer) => try_source(config, kind, &name, &offer.addresses).await,
        });
    }
    findings
}

/// Checks a list without taking it in: looking must not change what the node believes.
async fn check_list(cache: &ListCache, list: &ListSource) -> Result<Offer, String> {
    let octets = get(list).await.map_err(|error| error.to_string())?;
    cache.judge(list, &octets, unix_seconds()).map_err(|error| error.to_string())
}

async fn try_source(
    config: &Config,
    kind: SourceKind,
    name: &str,
    addresses: &[Multiaddr],
) -> Finding {
    const CHECK: &str = "entry";
    // As many as are dialled at once: they take one patience together.
    let some = &addresses[..addresses.len().min(MAX_ENTRY_DIALS_PER_SOURCE)];
    let outcomes = match try_addresses(some, config.resolver, PATIENCE).await {
        Ok(outcomes) => outcomes,
        Err(error) => return Finding::problem(CHECK, error.to_string(), "see docs/entry.md"),
    };
    let reached = outcomes.iter().filter(|(_, o)| matches!(o, Outcome::Reached { .. })).count();
    let failure = outcomes.iter().find_map(|(address, outcome)| match outcome {
        Outcome::Failed { reason } => Some(format!("{address}: {reason}")),
        _ => None,
    });
    match (reached, failure) {
        (0, failure) => {
            let failure = failure.unwrap_or_else(|| "it names none".to_owned());
            let found = format!("{name}: none of {} addresses is reached; {failure}", some.len());
            Finding::problem(CHECK, found, advice(kind))
        }
        (reached, failure) => {
            let failure = failure.map(|failure| format!("; {failure}")).unwrap_or_default();
            Finding::ok(CHECK, format!("{name}: {reached} of {} are there{failure}", some.len()))
        }
    }
}
