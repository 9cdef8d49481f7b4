//! Command-line flags, parsed the way Docker's command line parses them.
//!
//! Docker's flags follow the conventions of Go's `pflag`: `-it`, `-p80:80`, `--rm=false`,
//! flags and arguments mixed (or not, for `run` and `exec`), and fixed wordings for errors
//! that scripts have learned to expect. Flags are static tables ([`Flag`]), so a command
//! costs nothing until it is the one that is called; help, shell completion and man pages
//! come from the same tables.

mod help;
mod parse;
mod values;

pub(crate) use values::parse_bool;

pub use help::usage_of;
pub use parse::{FlagError, Outcome, Parsed, parse};

/// How often a flag may be given and whether it takes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// On or off; takes a value only as `--flag=VALUE`.
    Switch,
    /// One value; the last one given counts.
    Single,
    /// Any number of values, kept in order.
    List,
}

/// Checks a value at the moment it is parsed; the error is Docker's wording of why not.
pub type Check = fn(&str) -> Result<(), String>;

/// One flag of one command.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Name after `--`.
    pub long: &'static str,
    /// Letter after `-`.
    pub short: Option<char>,
    /// Switch, single value or list.
    pub kind: Kind,
    /// What the help calls its value.
    pub value: &'static str,
    /// Default shown in the help, and returned when the flag is not given.
    pub default: &'static str,
    /// One sentence of help.
    pub help: &'static str,
    /// Recognised but not shown.
    pub hidden: bool,
    /// Checks a value.
    pub check: Check,
}

impl Flag {
    const fn new(long: &'static str, kind: Kind, value: &'static str, help: &'static str) -> Self {
        Self {
            long,
            short: None,
            kind,
            value,
            default: "",
            help,
            hidden: false,
            check: values::anything,
        }
    }

    /// An on/off flag that is off.
    #[must_use]
    pub const fn switch(long: &'static str, help: &'static str) -> Self {
        Self {
            check: values::boolean,
            ..Self::new(long, Kind::Switch, "", help)
        }
    }

    /// A text.
    #[must_use]
    pub const fn text(long: &'static str, help: &'static str) -> Self {
        Self::new(long, Kind::Single, "string", help)
    }

    /// A text that may be given several times.
    #[must_use]
    pub const fn list(long: &'static str, help: &'static str) -> Self {
        Self::new(long, Kind::List, "list", help)
    }

    /// A whole number.
    #[must_use]
    pub const fn int(long: &'static str, help: &'static str) -> Self {
        Self {
            check: values::integer,
            ..Self::new(long, Kind::Single, "int", help)
        }
    }

    /// A number of bytes with an optional unit (`512m`).
    #[must_use]
    pub const fn bytes(long: &'static str, help: &'static str) -> Self {
        Self {
            check: values::bytes,
            ..Self::new(long, Kind::Single, "bytes", help)
        }
    }

    /// A number of bytes; `-1` is none.
    #[must_use]
    pub const fn positive_bytes(long: &'static str, help: &'static str) -> Self {
        Self {
            check: values::positive_bytes,
            ..Self::bytes(long, help)
        }
    }

    /// A Go duration (`1m30s`).
    #[must_use]
    pub const fn duration(long: &'static str, help: &'static str) -> Self {
        Self {
            check: values::duration,
            ..Self::new(long, Kind::Single, "duration", help)
        }
    }

    /// `key=value` filters.
    #[must_use]
    pub const fn filter(help: &'static str) -> Self {
        Self {
            value: "filter",
            check: values::filter,
            ..Self::list("filter", help)
        }
        .short('f')
    }

    /// The usual `--format`.
    #[must_use]
    pub const fn format() -> Self {
        Self::text(
            "format",
            "How to print: 'table', 'table TEMPLATE', 'json', or a Go template",
        )
    }

    /// Adds the letter.
    #[must_use]
    pub const fn short(self, short: char) -> Self {
        Self {
            short: Some(short),
            ..self
        }
    }

    /// Removes the letter.
    #[must_use]
    pub const fn no_short(self) -> Self {
        Self {
            short: None,
            ..self
        }
    }

    /// Sets the default.
    #[must_use]
    pub const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    /// Sets what the help calls the value, and its check.
    #[must_use]
    pub const fn typed(self, value: &'static str, check: Check) -> Self {
        Self {
            value,
            check,
            ..self
        }
    }

    /// Leaves the flag out of the help.
    #[must_use]
    pub const fn hidden(self) -> Self {
        Self {
            hidden: true,
            ..self
        }
    }
}

/// How many arguments a command takes besides its flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arity {
    /// None.
    None,
    /// Exactly so many.
    Exact(usize),
    /// At least so many.
    Min(usize),
    /// At most so many.
    Max(usize),
    /// Between the two, inclusive.
    Range(usize, usize),
    /// Whatever.
    Any,
}

impl Arity {
    /// Docker's complaint about a number of arguments that does not fit, without the
    /// command's name; `None` when it fits.
    #[must_use]
    pub fn complaint(self, count: usize) -> Option<(String, &'static str)> {
        let arguments = |n: usize| if n == 1 { "argument" } else { "arguments" };
        match self {
            Self::None if count > 0 => Some(("accepts no arguments".into(), "Run")),
            Self::Exact(n) if count != n => Some((format!("requires {n} {}", arguments(n)), "Run")),
            Self::Min(n) if count < n => {
                Some((format!("requires at least {n} {}", arguments(n)), "See"))
            }
            Self::Max(n) if count > n => {
                Some((format!("requires at most {n} {}", arguments(n)), "Run"))
            }
            Self::Range(min, max) if count < min || count > max => Some((
                format!(
                    "requires at least {min} and at most {max} {}",
                    arguments(max)
                ),
                "Run",
            )),
            _ => None,
        }
    }
}
