//! The machine that figures were taken on, as Linux tells: figures without it say nothing.

use serde::Serialize;
use std::fs;

/// A description of this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processors that this process may use.
    pub cores: usize,
    /// The processor's name.
    pub processor: String,
    /// The kernel's release.
    pub kernel: String,
    /// Processes that ran or wanted to run during the last minute: near 0, or somebody else was
    /// at work.
    pub load: f64,
}

impl Machine {
    /// This machine, now.
    #[must_use]
    pub fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let name = model.and_then(|rest| rest.split_once(':')).map_or("unknown", |(_, name)| name);
        let load = read("/proc/loadavg");
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: name.trim().to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN),
        }
    }
}
