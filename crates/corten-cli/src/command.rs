//! What a command is: a static description and a function.

use std::future::Future;
use std::pin::Pin;

use crate::app::Cli;
use crate::error::Result;
use crate::flags::{Arity, Flag, Parsed};

/// A running command.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result> + 'a>>;

/// What a command does.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    /// Holds other commands.
    Group(&'static [&'static Command]),
    /// Does something.
    Run(for<'a> fn(&'a Cli, Parsed) -> Running<'a>),
    /// Is another face of the binary, which takes its arguments unparsed.
    Face(Face),
}

/// The faces that take their own arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// `registry …`
    Registry,
    /// `runtime …`
    Runtime,
}

/// One command.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// Its name within its group.
    pub name: &'static str,
    /// Other names it answers to.
    pub alternatives: &'static [&'static str],
    /// What follows its name in the usage line.
    pub usage: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// Its full names, if it has several (`container run`, `run`).
    pub aliases: &'static [&'static str],
    /// Its flags.
    pub flags: &'static [&'static [Flag]],
    /// How many arguments it takes.
    pub arity: Arity,
    /// Whether flags may follow arguments.
    pub interspersed: bool,
    /// Not shown in help.
    pub hidden: bool,
    /// Worth several threads (moves or compresses much data).
    pub heavy: bool,
    /// Rather fills the disk than empties it.
    pub fills: bool,
    /// What it does.
    pub action: Action,
}

impl Command {
    /// A command that does something.
    #[must_use]
    pub const fn new(
        name: &'static str,
        usage: &'static str,
        about: &'static str,
        run: for<'a> fn(&'a Cli, Parsed) -> Running<'a>,
    ) -> Self {
        Self {
            name,
            alternatives: &[],
            usage,
            about,
            aliases: &[],
            flags: &[],
            arity: Arity::Any,
            interspersed: true,
            hidden: false,
            heavy: false,
            fills: false,
            action: Action::Run(run),
        }
    }

    /// A group of commands.
    #[must_use]
    pub const fn group(
        name: &'static str,
        about: &'static str,
        commands: &'static [&'static Self],
    ) -> Self {
        Self {
            name,
            alternatives: &[],
            usage: "COMMAND",
            about,
            aliases: &[],
            flags: &[],
            arity: Arity::Any,
            interspersed: true,
            hidden: false,
            heavy: false,
            fills: false,
            action: Action::Group(commands),
        }
    }

    /// Another face of the binary.
    #[must_use]
    pub const fn face(name: &'static str, about: &'static str, face: Face) -> Self {
        let group = Self::group(name, about, &[]);
        Self {
            usage: "COMMAND [ARG...]",
            action: Action::Face(face),
            ..group
        }
    }

    /// Sets the flags.
    #[must_use]
    pub const fn flags(self, flags: &'static [&'static [Flag]]) -> Self {
        Self { flags, ..self }
    }

    /// Sets the number of arguments.
    #[must_use]
    pub const fn arity(self, arity: Arity) -> Self {
        Self { arity, ..self }
    }

    /// Sets the full names.
    #[must_use]
    pub const fn aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    /// Sets other names.
    #[must_use]
    pub const fn also(self, alternatives: &'static [&'static str]) -> Self {
        Self {
            alternatives,
            ..self
        }
    }

    /// The same command under another name.
    #[must_use]
    pub const fn named(self, name: &'static str) -> Self {
        Self {
            name,
            alternatives: &[],
            ..self
        }
    }

    /// Flags end at the first argument.
    #[must_use]
    pub const fn flags_first(self) -> Self {
        Self {
            interspersed: false,
            ..self
        }
    }

    /// Leaves the command out of the help.
    #[must_use]
    pub const fn hidden(self) -> Self {
        Self {
            hidden: true,
            ..self
        }
    }

    /// Runs on several threads.
    #[must_use]
    pub const fn heavy(self) -> Self {
        Self {
            heavy: true,
            ..self
        }
    }

    /// Does not get the last room of a disk, which is for those that empty it.
    #[must_use]
    pub const fn fills(self) -> Self {
        Self {
            fills: true,
            ..self
        }
    }

    /// Whether the command answers to a name.
    #[must_use]
    pub fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.alternatives.contains(&name)
    }

    /// The visible commands of a group, sorted by name.
    #[must_use]
    pub fn children(&self) -> Vec<&'static Self> {
        let Action::Group(commands) = self.action else {
            return Vec::new();
        };
        let mut visible: Vec<_> = commands.iter().copied().filter(|c| !c.hidden).collect();
        visible.sort_by_key(|c| c.name);
        visible
    }
}

/// Makes an `async fn(&Cli, Parsed) -> Result` a command's function.
macro_rules! action {
    ($function:path) => {
        |cli, flags| Box::pin($function(cli, flags))
    };
}
pub(crate) use action;
