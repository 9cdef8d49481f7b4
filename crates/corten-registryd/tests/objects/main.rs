//! The same tests as in `registry`, of a registry in an object store: what a client sees must
//! not differ. The store is an S3 of this program's own ([`s3`]), reached over HTTP.

// A test's helpers fail the test by panicking; clippy knows only the test functions as tests.
#![allow(clippy::unwrap_used)]

mod backend;
#[path = "../registry/cache.rs"]
mod cache;
#[path = "../registry/child.rs"]
mod child;
#[path = "../registry/collection.rs"]
mod collection;
#[path = "../registry/harness.rs"]
mod harness;
#[path = "../registry/manifests.rs"]
mod manifests;
mod named;
#[path = "../registry/pull.rs"]
mod pull;
#[path = "../registry/push.rs"]
mod push;
#[path = "../registry/quotas.rs"]
mod quotas;
mod races;
mod replicas;
mod s3;
