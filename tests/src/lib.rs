//! The harness that end-to-end tests and benchmark programs share.
