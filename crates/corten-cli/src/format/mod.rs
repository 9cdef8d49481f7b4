//! What people read: tables, sizes, durations, times.

pub(crate) mod list;
pub(crate) mod tabs;
pub(crate) mod units;

pub(crate) use list::{Listing, Row, escaped};
pub(crate) use tabs::align;
