//! The registry as its clients see it: a server in this process on a free port, plain HTTP.

// A test's helpers fail the test by panicking; clippy knows only the test functions as tests.
#![allow(clippy::unwrap_used)]

mod access;
mod backend;
mod cache;
mod child;
mod collection;
mod harness;
mod manifests;
mod operations;
mod process;
mod pull;
mod push;
mod quotas;
mod tokens;
