//! A message to a container's name server, as a question and as an answer from outside.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| corten_dns::fuzzing::dns_message(bytes));
