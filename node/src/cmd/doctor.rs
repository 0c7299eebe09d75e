//! `narswarm doctor`: what is wrong, and what to do about it.

use crate::config::{AclArgs, CommonArgs, Config, NodeArgs};
use crate::doctor::{Diagnosis, Verdict, diagnose};
use clap::Args;
use std::process::ExitCode;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    acl: AclArgs,
    #[command(flatten)]
    node: NodeArgs,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// Looks at everything; succeeds only if nothing is wrong.
///
/// # Errors
/// A configuration that can't be read.
pub fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.common, &args.acl, &args.node)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let diagnosis = runtime.block_on(diagnose(&config));
    // Names that are still being looked up must not hold the answer back.
    runtime.shutdown_background();
    if args.json {
        println!("{}", serde_json::to_string(&diagnosis)?);
    } else {
        println!("{}", describe(&diagnosis));
    }
    Ok(if diagnosis.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(diagnosis: &Diagnosis) -> String {
    let mut lines = Vec::new();
    for finding in &diagnosis.findings {
        let mark = match finding.verdict {
            Verdict::Ok => "ok     ",
            Verdict::Note => "note   ",
            Verdict::Problem => "PROBLEM",
        };
        lines.push(format!("{mark}  {:<13} {}", finding.check, finding.found));
        if let Some(advice) = &finding.advice {
            lines.push(format!("{:>23} → {advice}", ""));
        }
    }
    let problems = diagnosis.findings.iter().filter(|f| f.verdict == Verdict::Problem).count();
    lines.push(match problems {
        0 => "nothing is wrong".to_owned(),
        1 => "1 problem".to_owned(),
        more => format!("{more} problems"),
    });
    lines.join("\n")
}
