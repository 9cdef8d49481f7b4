//! A message on the socket of the systemd driver is read or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| corten_runtime::fuzzing::dbus_message(bytes));
