//! `regex-lite` in the place of `regex`. The only crate here that asks for `regex` is
//! `oci-spec`, for one pattern: the list of processors in `process.execCPUAffinity`. For
//! that, `regex` brings tables of all of Unicode: 45 of the 200 pages of addresses that this
//! position-independent program relocates at every start.

pub use regex_lite::{Regex, RegexBuilder};
