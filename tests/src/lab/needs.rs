//! Whether this machine and this user can have a lab at all.

use crate::harness::samples::not_tested;
use std::path::Path;

/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`, as bits of what `/proc/self/status` tells.
const CAPABILITIES: u64 = 1 << 12 | 1 << 21;

/// Where tap devices are made.
const TUN: &str = "/dev/net/tun";

/// Programs that it is built with, and the packages that have them.
const PROGRAMS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("tc", "iproute2"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
];

/// What is missing for a lab.
#[must_use]
pub fn missing() -> Option<String> {
    if effective_capabilities() & CAPABILITIES != CAPABILITIES {
        return Some("network namespaces need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)".to_owned());
    }
    if !Path::new(TUN).exists() {
        return Some(format!("the network lab delays packets through {TUN}, which isn't there"));
    }
    let (program, package) = PROGRAMS.into_iter().find(|(program, _)| !is_program(program))?;
    Some(format!("the network lab needs the program {program}, of the package {package}"))
}

/// Whether a test may go on; if it may not, that is said.
///
/// # Panics
/// Under continuous integration, when it may not.
#[must_use]
pub fn are_met() -> bool {
    let missing = missing();
    if let Some(why) = &missing {
        not_tested(why);
    }
    missing.is_none()
}

/// Whether a program of this name can be started.
#[must_use]
pub fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(name).is_file())
}

fn effective_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}
