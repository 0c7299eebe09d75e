//! Memory in huge pages, for runs that go through gigabytes in no order: most of such a run is
//! waiting for memory, much of it for the tables that say where a page of four kilobytes lies.

use std::process::Command;

/// glibc reads this before anything of ours runs, so it can only be given to a new program.
const TUNABLES: &str = "GLIBC_TUNABLES";

/// Asks the kernel for huge pages where the system leaves it to programs to ask.
const HUGE_PAGES: &str = "glibc.malloc.hugetlb=1";

/// Replaces this program by itself with huge pages, unless somebody has already chosen. What comes of
/// a run is the same without them, so where that can't be done it goes on as it is.
pub fn ask_for_them() {
    if std::env::var_os(TUNABLES).is_some() || !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return;
    }
    let Ok(this) = std::env::current_exe() else { return };
    let mut again = Command::new(this);
    again.args(std::env::args_os().skip(1)).env(TUNABLES, HUGE_PAGES);
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt as _;
        // It returns only when it fails.
        drop(again.exec());
    }
}
