//! How a swarm does on lines as people have them, in network namespaces with shaped lines: a
//! flash crowd beside BitTorrent's (T5, T6), a swarm without a useful peer beside its upstream
//! (T7), sources that vanish (T8), sources that lie (T9), what a huge nar takes of memory, and hosts
//! behind routers of all kinds (T14). Needs root.

use clap::{Parser, Subcommand};
use narswarm_tests::bench::run::{CommonArgs, run};
use narswarm_tests::lab::needs;
use narswarm_tests::lab::runs::{
    crowds, liars, lost_sources, memory, nat, own_stores, small_nars, upstreams,
};
use std::process::ExitCode;

/// Swarms of nodes in network namespaces with shaped lines; needs root.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Many want at the same moment what one has (T5, T6).
    Crowd(crowds::CrowdArgs),
    /// No peer has what is wanted, and the upstream is far away (T7).
    Upstream(upstreams::UpstreamArgs),
    /// Many small nars, one after another, from a peer that is far away.
    Small(small_nars::SmallArgs),
    /// A nar from a machine's own store, over lines of several rates.
    OwnStore(own_stores::OwnStoreArgs),
    /// One of two sources vanishes in mid-transfer (T8).
    LostSource(lost_sources::LostArgs),
    /// Some of many sources lie (T9).
    Liars(liars::LiarArgs),
    /// A huge nar from many sources: memory of both sides.
    Memory(memory::MemoryArgs),
    /// Two hosts behind routers of all kinds (T14).
    Nat(nat::NatArgs),
    /// All of these, one after another, as they are without arguments.
    All,
}

/// What `all` runs, the shortest first.
const PARTS: [&str; 8] =
    ["upstream", "small", "own-store", "lost-source", "nat", "liars", "memory", "crowd"];

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if let Some(why) = needs::missing() {
        anyhow::bail!("NOT MEASURED: {why}");
    }
    measure(&args.common, &args.what)
}

fn measure(common: &CommonArgs, what: &What) -> anyhow::Result<ExitCode> {
    let rounds = common.rounds;
    match what {
        What::Crowd(crowd) => run(common, crowds::measure(rounds, crowd)),
        What::Upstream(upstream) => run(common, upstreams::measure(rounds, upstream)),
        What::Small(small) => run(common, small_nars::measure(rounds, small)),
        What::OwnStore(own) => run(common, own_stores::measure(rounds, own)),
        What::LostSource(lost) => run(common, lost_sources::measure(rounds, lost)),
        What::Liars(liars) => run(common, liars::measure(rounds, liars)),
        What::Memory(memory) => run(common, memory::measure(rounds, memory)),
        What::Nat(nat) => run(common, nat::measure(rounds, nat)),
        What::All => {
            for part in PARTS {
                measure(common, &Args::parse_from(["bench-swarm", part]).what)?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
