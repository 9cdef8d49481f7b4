//! The client against a real registry and against one that misbehaves.

#![allow(clippy::unwrap_used)]

mod auth;
mod endpoints;
mod harness;
mod mirrors;
mod pull;
mod push;
mod remote;
mod resilience;
mod stub;
mod wire;
