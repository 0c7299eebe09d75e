//! What another process has used, from what Linux tells in `/proc`.

use anyhow::Context;
use std::fs;

/// Ticks a second in which Linux counts processor time for user space: a constant of its
/// interface on all architectures but Alpha (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// A process under observation.
#[derive(Debug, Clone, Copy)]
pub struct Meter {
    pid: u32,
    idle_bytes: u64,
    cpu_s: f64,
}

/// What it has used since the observation began.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// Seconds of processor time, of all its threads, in its own code and in the kernel.
    pub cpu_s: f64,
    /// The most memory that it held beyond what it held at the beginning.
    pub above_idle_bytes: u64,
}

impl Meter {
    /// Begins observing a process of one's own that has nothing to do at the moment.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn start(pid: u32) -> anyhow::Result<Self> {
        // See proc(5): 5 resets the most memory ever held to what is held now.
        let path = format!("/proc/{pid}/clear_refs");
        fs::write(&path, "5").with_context(|| format!("cannot write {path}"))?;
        Ok(Self { pid, idle_bytes: resident_bytes(pid)?, cpu_s: cpu_seconds(pid)? })
    }

    /// Reads the meter.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn read(&self) -> anyhow::Result<Used> {
        Ok(Used {
            cpu_s: cpu_seconds(self.pid)? - self.cpu_s,
            above_idle_bytes: memory(self.pid, "VmHWM:")?.saturating_sub(self.idle_bytes),
        })
    }
}

/// Octets of memory that a process holds now.
///
/// # Errors
/// When the process is gone.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    memory(pid, "VmRSS:")
}

fn memory(pid: u32, field: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let value = status.lines().find_map(|line| line.strip_prefix(field));
    let kib: u64 = value
        .and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok())
        .with_context(|| format!("{path} says no {field}"))?;
    Ok(kib * 1024)
}

/// Seconds of processor time that a process has used so far.
///
/// # Errors
/// When the process is gone.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    ticks(&stat)
        .map(|ticks| ticks as f64 / TICKS_PER_SECOND)
        .with_context(|| format!("{path} is not as proc(5) describes it"))
}

/// Fields 14 and 15, counted from 1. The second, the name, may hold spaces and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_be_metered() {
        let pid = std::process::id();
        let meter = Meter::start(pid).expect("this process runs");
        let ballast = vec![1_u8; 64 << 20];
        let begin = cpu_seconds(pid).expect("this process runs");
        while cpu_seconds(pid).expect("this process runs") < begin + 0.02 {
            std::hint::black_box(&ballast);
        }
        let used = meter.read().expect("this process runs");
        assert!(used.cpu_s >= 0.02, "{used:?}");
        assert!(used.above_idle_bytes > 60 << 20, "{used:?}");
    }

    #[test]
    fn names_of_processes_do_not_confuse() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 30 12 5 6 20 0 1 0";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (short) S 1"), None);
    }
}
