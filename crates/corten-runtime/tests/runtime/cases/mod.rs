//! All cases.

mod attributes;
mod isolation;
mod limits;
mod process;

use crate::Case;

pub fn all() -> Vec<Case> {
    [
        attributes::CASES,
        process::CASES,
        isolation::CASES,
        limits::CASES,
    ]
    .concat()
}
