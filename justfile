# What there is to do here. `just ci` is what continuous integration runs.

# Run a node; its substitute URL is http://127.0.0.1:8710
run *arguments:
    cargo run --release -- run {{arguments}}

# Two nodes and one signed nar on this machine, without a network
demo:
    cargo run --release -- demo

# All tests, or those that a filter names
test *arguments:
    ./run-tests {{arguments}}

# Formatting and lints, as CI denies them
lint:
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets --locked -- -D warnings

# The documentation of the code
doc:
    RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" \
        cargo doc --release --workspace --no-deps --document-private-items --locked

# Licences, bans and sources of the dependencies; with a network also `cargo deny check advisories`
deny:
    cargo deny --offline check bans licenses sources

# Everything that CI checks
ci:
    .ci/run
