//! `narswarm-bootstrap list`: makes, signs and checks lists of entry nodes.
//!
//! The signing key is a file of its own, never that of a node: who signs lists need not run any
//! node, and the machine that a list lies on needs no key at all.

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use libp2p::Multiaddr;
use narswarm_node::entry::Offer;
use narswarm_node::entry::list::{FETCH_TIMEOUT, ListSource, get, unix_seconds};
use narswarm_node::entry::probe::{Outcome, try_addresses};
use narswarm_protocol::seed_list::{SeedList, SeedListKey, SeedListSigner};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest file of a key, or of addresses, that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// How long the addresses of a list are tried for each eight of them.
const TRY_PATIENCE: Duration = Duration::from_secs(12);

/// What there is to do with lists.
#[derive(Debug, Subcommand)]
pub enum ListCommand {
    /// Make a signing key, or show the public key of one.
    Key(KeyArgs),
    /// Make and sign a list.
    Make(MakeArgs),
    /// Add a signature to a list, so that keys can be replaced or lists be vouched for by several.
    Sign(SignArgs),
    /// Check a list: its signature, its end, and whether its nodes are there.
    Check(CheckArgs),
}

/// Arguments of `list key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// The file of the secret key; made if it isn't there.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Arguments of `list make`.
#[derive(Debug, Args)]
pub struct MakeArgs {
    /// The file of the secret key, as `list key` makes it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// How long the list is believed.
    #[arg(long, value_name = "TIME", default_value = "90days")]
    valid: humantime::Duration,
    /// Its number, higher than that of the list before [default: the seconds since 1970].
    #[arg(long, value_name = "NUMBER")]
    sequence: Option<u64>,
    /// Where to write it [default: standard output].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A file with further addresses, one a line; lines that begin with # are passed over.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Addresses of entry nodes, with their /p2p/ part.
    #[arg(value_name = "MULTIADDR")]
    addresses: Vec<Multiaddr>,
}

/// Arguments of `list sign`.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// The file of the secret key.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The list; it is replaced by itself with one more signature.
    #[arg(value_name = "FILE")]
    list: PathBuf,
}

/// Arguments of `list check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Public key that should have signed it [default: any]. Repeatable.
    #[arg(long, value_name = "KEY")]
    key: Vec<SeedListKey>,
    /// Don't try its addresses.
    #[arg(long)]
    no_dial: bool,
    /// Where it is.
    #[arg(value_name = "FILE|URL")]
    list: ListSource,
}

/// Runs one of them.
///
/// # Errors
/// What went wrong.
pub fn run(command: ListCommand) -> anyhow::Result<ExitCode> {
    match command {
        ListCommand::Key(args) => key(&args),
        ListCommand::Make(args) => make(args),
        ListCommand::Sign(args) => sign(&args),
        ListCommand::Check(args) => check(&args),
    }
}

fn key(args: &KeyArgs) -> anyhow::Result<ExitCode> {
    if args.file.exists() {
        println!("{}", read_signer(&args.file)?.key());
        return Ok(ExitCode::SUCCESS);
    }
    let signer = SeedListSigner::new(&rand::random());
    let file = args.file.display();
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(&args.file);
    let mut opened = opened.with_context(|| format!("cannot make {file}"))?;
    opened.write_all(signer.to_secret_text().as_bytes())?;
    opened.sync_all()?;
    eprintln!("{file} is the secret key: keep it to yourself, and keep a copy");
    println!("{}", signer.key());
    Ok(ExitCode::SUCCESS)
}

fn make(args: MakeArgs) -> anyhow::Result<ExitCode> {
    let signer = read_signer(&args.key)?;
    let mut addresses = args.addresses;
    if let Some(file) = &args.from {
        for line in read_small(file)?.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let address = line.parse().with_context(|| format!("{line:?} is no multiaddress"))?;
            addresses.push(address);
        }
    }
    ensure!(!addresses.is_empty(), "a list without addresses leads nowhere: name some");
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    for text in &texts {
        let offer = Offer::from_texts([text.clone()]);
        ensure!(offer.passed_over == 0, "{text} doesn't say which peer is there: add /p2p/…");
    }
    let now = unix_seconds();
    let expires = now.saturating_add(args.valid.as_secs());
    let list = SeedList::new(args.sequence.unwrap_or(now), expires, texts)?;
    let signed = signer.sign(&list);
    // What can't be read back must not go out.
    SeedList::verify(signed.as_bytes(), &[signer.key()]).context("the list can't be read back")?;
    match &args.output {
        Some(file) => replace(file, &signed)?,
        None => print!("{signed}"),
    }
    let (count, until) = (list.addresses.len(), date(expires));
    eprintln!("{count} addresses, number {}, believed until {until}", list.sequence);
    Ok(ExitCode::SUCCESS)
}

fn sign(args: &SignArgs) -> anyhow::Result<ExitCode> {
    let signer = read_signer(&args.key)?;
    let text = read_small(&args.list)?;
    if SeedList::claimed_keys(text.as_bytes())?.contains(&signer.key()) {
        bail!("{} is signed with this key already", args.list.display());
    }
    let signed = signer.sign_also(text.as_bytes())?;
    SeedList::verify(signed.as_bytes(), &[signer.key()])?;
    replace(&args.list, &signed)?;
    eprintln!("signed by {}", signer.key());
    Ok(ExitCode::SUCCESS)
}

fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let octets = tokio::time::timeout(2 * FETCH_TIMEOUT, get(&args.list)).await;
        let octets = octets.context("no answer in time")??;
        let claimed = SeedList::claimed_keys(&octets)?;
        let keys = if args.key.is_empty() { &claimed } else { &args.key };
        let list = SeedList::verify(&octets, keys)?;
        for key in &claimed {
            let valid = SeedList::verify(&octets, &[*key]).is_ok();
            println!("signed by {key}: {}", if valid { "valid" } else { "NOT VALID" });
        }
        println!("number {}, believed until {}", list.sequence, date(list.expires));
        list.check_current(unix_seconds())?;
        let offer = Offer::from_texts(list.addresses);
        if offer.passed_over > 0 {
            bail!("{} of its addresses are none that is used", offer.passed_over);
        }
        if args.no_dial {
            println!("{} addresses, not tried", offer.addresses.len());
            return Ok(ExitCode::SUCCESS);
        }
        try_all(&offer.addresses).await
    })
}

/// Tries every address; succeeds if all are there.
async fn try_all(addresses: &[Multiaddr]) -> anyhow::Result<ExitCode> {
    let patience = TRY_PATIENCE * u32::try_from(addresses.len().div_ceil(8)).unwrap_or(u32::MAX);
    let outcomes = try_addresses(addresses, None, patience).await?;
    let mut code = ExitCode::SUCCESS;
    for (address, outcome) in outcomes {
        let said = match outcome {
            Outcome::Reached { agent } => format!("there ({agent})"),
            Outcome::Failed { reason } => {
                code = ExitCode::FAILURE;
                format!("NOT REACHED: {reason}")
            }
            Outcome::NotTried => {
                code = ExitCode::FAILURE;
                "not tried, for want of time".to_owned()
            }
        };
        println!("{address}: {said}");
    }
    Ok(code)
}

fn read_signer(file: &Path) -> anyhow::Result<SeedListSigner> {
    let text = read_small(file)?;
    SeedListSigner::from_secret_text(&text)
        .map_err(|_| anyhow::anyhow!("{} holds no secret key of seed lists", file.display()))
}

fn read_small(file: &Path) -> anyhow::Result<String> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        fs::File::open(file)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
        Ok(text)
    };
    read().with_context(|| format!("cannot read {}", file.display()))
}

/// Writes a file whole or not at all: web servers may be reading it.
fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    let fresh = file.with_extension("new");
    let write = || -> io::Result<()> {
        let mut opened = fs::File::create(&fresh)?;
        opened.write_all(text.as_bytes())?;
        opened.sync_all()?;
        fs::rename(&fresh, file)
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

/// A time as people write it; one past the year 9999 only as a number.
fn date(seconds: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let within = |time: &SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        since.as_secs() < 253_402_300_800
    };
    match time.filter(within) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => format!("{seconds} s after 1970"),
    }
}
