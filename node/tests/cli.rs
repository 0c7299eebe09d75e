//! The program itself: that it starts, and says what it can do.

use std::process::{Command, Output};

fn narswarm(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_narswarm"));
    command.args(arguments).output().expect("the program can be started")
}

#[test]
fn tells_its_version_and_its_subcommands() {
    let version = narswarm(&["--version"]);
    assert!(version.status.success());
    let expected = concat!("narswarm ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
    let help = narswarm(&["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for subcommand in ["run", "import", "status", "check", "config", "demo"] {
        assert!(help.contains(&format!("\n  {subcommand} ")), "{subcommand} is not in:\n{help}");
    }
}

#[test]
fn what_is_not_understood_is_an_error_that_names_it() {
    for arguments in [&["frobnicate"][..], &["run", "--frobnicate"], &["check"]] {
        let refused = narswarm(arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
        assert!(refused.stdout.is_empty(), "{arguments:?}");
        let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
        let named = arguments.last().filter(|word| **word != "check").unwrap_or(&"<NARINFO>");
        assert!(complaint.contains(*named), "{complaint}");
    }
}
