//! End-to-end tests: the real binary against the real kernel, each in an engine root of its
//! own, cleaned up even when the test fails.

mod api;
mod bad_input;
mod build;
mod containers;
mod crash;
mod harness;
mod isolation;
mod network;
mod registry;
mod volumes;
