//! All cases.

mod isolation;
mod limits;
mod process;

use crate::Case;

pub fn all() -> Vec<Case> {
    [process::CASES, isolation::CASES, limits::CASES].concat()
}
