//! All cases.

mod attributes;
mod isolation;
mod limits;
mod process;
mod systemd;
mod updates;

use crate::Case;

pub fn all() -> Vec<Case> {
    [
        attributes::CASES,
        process::CASES,
        isolation::CASES,
        limits::CASES,
        updates::CASES,
        systemd::CASES,
    ]
    .concat()
}
