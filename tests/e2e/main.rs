//! End-to-end tests: the real binary against the real kernel, each in an engine root of its
//! own, cleaned up even when the test fails.

// A test's way to fail is to panic; the lint's own exemption covers only `#[test]` functions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api;
mod bad_input;
mod build;
mod build_attest;
mod build_cache;
mod build_checks;
mod build_command;
mod build_contexts;
mod build_dates;
mod build_debug;
mod build_forms;
mod build_graph;
mod build_history;
mod build_mounts;
mod build_outputs;
mod build_platforms;
mod build_ssh;
mod containers;
mod cp;
mod crash;
mod depends;
mod docker_table;
mod dockerfiles;
mod explain;
mod harness;
mod health;
mod image_prune;
mod image_words;
mod images;
mod init;
mod isolation;
mod layers;
mod logs;
mod look;
mod manifests;
mod moving;
mod network;
mod registry;
mod registry_access;
mod registry_clients;
mod registry_resume;
mod resources;
mod restarts;
mod rubbish;
mod run_flags;
mod runtime_peers;
mod runtime_start;
mod snapshots;
mod volume_filling;
mod volume_moving;
mod volume_options;
mod volumes;
