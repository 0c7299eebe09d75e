//! The rules that a compiler doesn't hold: which part may know which, what `protocol` may depend
//! on, and that the documents speak of what is there.
//!
//! Each rule is a function from a text to what is wrong with it, tried on a bad text below, and
//! applied to the whole repository by one test.

use clap::CommandFactory;
use narswarm_node::cli::Cli;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest source file without its tests. The median is under 200; what reaches this is two
/// things.
const MAX_SOURCE_LINES: usize = 500;

/// Longest that the bird's-eye view may be: more is not read.
const MAX_ARCHITECTURE_LINES: usize = 200;

/// The parts of the node that never know each other.
const PARTS: [&str; 5] = ["http", "net", "store", "system_store", "upstream"];

/// What of the node every part may use besides itself.
const COMMON: [&str; 3] = ["buffers", "metrics", "rate"];

/// Crates that do input or output, read clocks or ask for randomness.
const IMPURE: [&str; 14] = [
    "async-std",
    "getrandom",
    "hyper",
    "libp2p",
    "mio",
    "polling",
    "rand",
    "reqwest",
    "rustix",
    "sled",
    "smol",
    "socket2",
    "tempfile",
    "tokio",
];

/// A file of the repository: its path from the root, and its text.
struct Source {
    path: String,
    text: String,
}

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the crate lies in the workspace").to_owned()
}

/// All text files of the project, without what is built or generated.
fn sources() -> Vec<Source> {
    const WRITTEN: [&str; 6] = ["rs", "md", "toml", "scm", "html", "sh"];
    let root = root();
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).expect("a folder of the repository can be listed");
        for path in entries.map(|entry| entry.expect("an entry can be read").path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
            let relative = path.strip_prefix(&root).expect("below the root").display().to_string();
            if path.is_dir() && !matches!(name, "target" | ".git") {
                folders.push(path);
            } else if WRITTEN.contains(&kind)
                || ["justfile", "run-tests", ".ci/run"].contains(&&*relative)
            {
                let text = fs::read_to_string(&path).expect("what is written is text");
                found.push(Source { path: relative, text });
            }
        }
    }
    assert!(found.len() > 100, "only {} files were found: the walk is broken", found.len());
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn rust_sources() -> impl Iterator<Item = Source> {
    sources().into_iter().filter(|source| source.path.ends_with(".rs"))
}

/// Applies a rule to files and lists everything that it finds.
fn hold(sources: impl Iterator<Item = Source>, rule: impl Fn(&Source) -> Vec<String>) {
    let wrong: Vec<String> = sources
        .flat_map(|source| {
            let found = rule(&source);
            found.into_iter().map(move |what| format!("{}: {what}", source.path))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Names of the crates in the normal dependency tree of a package, for this kind of machine.
fn dependencies(package: &str) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none"])
        .args(["--package", package])
        .current_dir(root())
        .output()
        .expect("cargo can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree failed: {said}");
    let tree = String::from_utf8_lossy(&output.stdout);
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn protocol_depends_on_nothing_impure() {
    let impure: BTreeSet<String> = IMPURE.map(str::to_owned).into();
    let node = dependencies("narswarm-node");
    let seen: Vec<_> = node.intersection(&impure).collect();
    assert!(seen.len() >= 8, "the node depends on most of them, but only {seen:?} were seen");
    let protocol = dependencies("narswarm-protocol");
    assert!(protocol.contains("blake3"), "{protocol:?}");
    let found: Vec<_> = protocol.intersection(&impure).collect();
    assert!(found.is_empty(), "protocol is values in, values out, but depends on {found:?}");
}

/// The top-level modules of the node that `text`, the source of module `module`, names outside
/// comments.
fn named_modules(module: &[&str], text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .map(|line| if line.trim_start().starts_with("//") { "" } else { line })
        .map(|line| line.split_once(" //").map_or(line, |(code, _)| code))
        .collect::<Vec<_>>()
        .join("\n");
    let mut named = BTreeSet::new();
    for (prefix, depth) in
        [("crate::", module.len()), ("narswarm_node::", module.len()), ("super::", 1)]
    {
        for (at, _) in code.match_indices(prefix) {
            let before = code[..at].chars().next_back();
            // `super::super::` is looked at where it begins.
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let mut rest = &code[at + prefix.len()..];
            let mut risen = depth;
            while let Some(above) = rest.strip_prefix("super::") {
                (rest, risen) = (above, risen + 1);
            }
            if risen >= module.len() {
                named.extend(first_names(rest));
            }
        }
    }
    named
}

/// The first name of a path, or of each path of a group in braces.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// What a part of the node must not name.
fn foreign_modules(source: &Source) -> Vec<String> {
    let Some(inside) = source.path.strip_prefix("node/src/") else { return vec![] };
    let module: Vec<&str> = inside.trim_end_matches(".rs").split('/').collect();
    let part = module[0];
    if !PARTS.contains(&part) {
        return vec![];
    }
    let named = named_modules(&module, &source.text);
    let foreign = named.iter().filter(|name| **name != part && !COMMON.contains(&name.as_str()));
    // A name after one `super::` of a file at the top may be its own child's.
    let modules = |name: &&String| root().join(format!("node/src/{name}.rs")).exists();
    foreign.filter(modules).map(|name| format!("{part} must not know {name}")).collect()
}

#[test]
fn the_parts_of_the_node_do_not_know_each_other() {
    let found = rust_sources().filter(|source| source.path.starts_with("node/src/")).count();
    assert!(found > 40, "only {found} files of the node were found");
    hold(rust_sources(), foreign_modules);
}

#[test]
fn names_of_other_parts_are_found_however_they_are_written() {
    let named = |module: &[&str], text: &str| {
        named_modules(module, text).into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(named(&["net", "query"], "use crate::store::Store;"), "store");
    assert_eq!(
        named(&["net"], "use crate::{http::{Backend, nar}, metrics, store};"),
        "http metrics store"
    );
    assert_eq!(named(&["net", "query"], "super::super::upstream::Upstreams::new()"), "upstream");
    assert_eq!(named(&["net", "query"], "use super::super::{store, http::x};"), "http store");
    assert_eq!(named(&["net"], "fn f(s: &super::store::Store) {}"), "store");
    assert_eq!(
        named(&["net", "query"], "use super::streams; // crate::store\n/// crate::http"),
        ""
    );
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let wrong =
        foreign_modules(&source("node/src/net/query.rs", "use crate::{net, store::Store};"));
    assert_eq!(wrong, ["net must not know store"]);
    assert!(foreign_modules(&source("node/src/engine.rs", "use crate::{net, store};")).is_empty());
}

fn is_test(path: &str) -> bool {
    let parts: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
    path.starts_with("tests/")
        || parts.iter().any(|p| matches!(*p, "tests" | "testing" | "conformance"))
}

fn without_inline_tests(text: &str) -> &str {
    text.split_once("#[cfg(test)]\nmod tests {").map_or(text, |(code, _)| code)
}

fn shape(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    if !source.text.starts_with("//! ") {
        wrong.push("doesn't open with what it is for (`//! …`)".to_owned());
    }
    let lines = without_inline_tests(&source.text).lines().count();
    if lines > MAX_SOURCE_LINES && !is_test(&source.path) {
        wrong.push(format!("{lines} lines, {MAX_SOURCE_LINES} at most: is it still one thing?"));
    }
    wrong
}

#[test]
fn source_files_say_what_they_are_and_stay_one_thing() {
    hold(rust_sources(), shape);
}

/// What is unfinished, and paths of somebody's machine. Written in halves, since this file is
/// looked at as well.
fn leftovers(source: &Source) -> Vec<String> {
    let unfinished = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("db", "g!("),
    ];
    let paths =
        [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/tm", "p/")];
    let mut wrong = Vec::new();
    for (number, line) in (1..).zip(source.text.lines()) {
        for pattern in unfinished.iter().chain(&paths) {
            if line.contains(pattern) {
                wrong.push(format!("line {number} has {pattern}"));
            }
        }
    }
    wrong
}

#[test]
fn nothing_is_left_unfinished_or_bound_to_one_machine() {
    // Lints are named where they are forbidden.
    hold(sources().into_iter().filter(|source| !source.path.ends_with("clippy.toml")), leftovers);
}

/// The words in backticks of a document.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Paths that a document names and links that it makes, and that lead nowhere.
fn dead_references(source: &Source) -> Vec<String> {
    let root = root();
    let folder = Path::new(&source.path).parent().unwrap_or(Path::new(""));
    let links = source.text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links = links
        .filter(|link| !link.contains("://") && !link.starts_with('#'))
        .filter_map(|link| link.split('#').next())
        .filter(|link| !root.join(folder).join(link).exists());
    let beginnings = [
        "bootstrap/",
        "node/",
        "protocol/",
        "sim/",
        "tests/",
        "docs/",
        "packaging/",
        ".ci/",
        ".config/",
    ];
    let paths = quoted(&source.text)
        .filter(|word| beginnings.iter().any(|beginning| word.starts_with(beginning)))
        .filter(|word| !word.contains(|c: char| c.is_whitespace() || "<*…{".contains(c)))
        .filter(|path| !root.join(path).exists());
    links.chain(paths).map(|path| format!("{path} doesn't exist")).collect()
}

#[test]
fn documents_speak_of_what_is_there() {
    hold(sources().into_iter().filter(|source| source.path.ends_with(".md")), dead_references);
}

#[test]
fn the_architecture_is_short_and_names_every_module() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let lines = text.lines().count();
    assert!(lines < MAX_ARCHITECTURE_LINES, "{lines} lines");
    let words: BTreeSet<&str> = quoted(&text).collect();
    for crate_dir in ["bootstrap", "node", "protocol", "sim"] {
        let lib = root().join(crate_dir).join("src/lib.rs");
        let lib = fs::read_to_string(lib).expect("a crate has a lib.rs");
        for line in lib.lines() {
            let Some(module) = line.strip_prefix("pub mod ").and_then(|m| m.strip_suffix(';'))
            else {
                continue;
            };
            assert!(words.contains(module), "the module {module} of {crate_dir} is not in the map");
        }
    }
}

/// Flags in command lines of `narswarm` that no subcommand has.
fn unknown_flags(source: &Source) -> Vec<String> {
    let command = Cli::command();
    let flags: BTreeSet<String> = std::iter::once(&command)
        .chain(command.get_subcommands())
        .flat_map(clap::Command::get_arguments)
        .filter_map(|argument| argument.get_long().map(|long| format!("--{long}")))
        .chain(["--help".to_owned(), "--version".to_owned()])
        .collect();
    let lines = source.text.lines().filter_map(|line| line.split_once("narswarm "));
    let words = lines
        .flat_map(|(_, arguments)| arguments.split(|c: char| c != '-' && !c.is_alphanumeric()));
    words
        .filter(|word| word.starts_with("--") && word.len() > 2 && !flags.contains(*word))
        .map(|flag| format!("narswarm has no flag {flag}"))
        .collect()
}

#[test]
fn documents_name_flags_that_exist() {
    hold(sources().into_iter().filter(|source| source.path.ends_with(".md")), unknown_flags);
}

#[test]
fn every_rule_finds_what_it_is_there_for() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let long = "//! A file.\n".to_owned() + &"fn f() {}\n".repeat(MAX_SOURCE_LINES);
    assert_eq!(shape(&source("node/src/long.rs", &long)).len(), 1);
    assert!(shape(&source("node/src/long/tests.rs", &long)).is_empty());
    let tested = long.replacen("fn f() {}\nfn", "fn f() {}\n#[cfg(test)]\nmod tests {\nfn", 1);
    assert!(shape(&source("node/src/long.rs", &tested)).is_empty());
    assert_eq!(shape(&source("node/src/mute.rs", "fn f() {}\n")).len(), 1);
    let left = format!(
        "one\n// {} later\nlet dir = \"{}build\";\n",
        concat!("TO", "DO"),
        concat!("/wo", "rk/")
    );
    assert_eq!(leftovers(&source("node/src/left.rs", &left)).len(), 2);
    let text = "[gone](docs/gone.md), [here](docs/trust.md), [away](https://example.org), `node/src/gone.rs`";
    assert_eq!(dead_references(&source("README.md", text)).len(), 2);
    let text = "    narswarm run --http 127.0.0.1:0 --htpp 127.0.0.1:0\n    guix build --substitute-urls=x";
    assert_eq!(unknown_flags(&source("README.md", text)), ["narswarm has no flag --htpp"]);
}
