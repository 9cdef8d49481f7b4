//! Commands on containers. Those that people also use without the word `container` are
//! statics of their own, for the top level.

mod attach;
mod commit;
mod cp;
mod diff;
mod exec;
mod inspect;
mod lifecycle;
mod logs;
mod ls;
mod moving;
mod port;
mod ports;
mod prune;
mod remove;
mod row;
mod start;
mod stats;
mod top;
mod update;
mod wait;
pub(crate) mod when;
mod why;

use futures_util::StreamExt;

use crate::app::Cli;
use crate::command::{Command, action};
use crate::commands::shared::Failures;
use crate::error::Result;
use crate::flags::Arity;
use crate::run;

pub(crate) use attach::ATTACH;
pub(crate) use commit::{COMMIT, EXPORT};
pub(crate) use cp::CP;
pub(crate) use diff::DIFF;
pub(crate) use exec::EXEC;
pub(crate) use inspect::INSPECT;
pub(crate) use lifecycle::{KILL, PAUSE, RENAME, RESTART, STOP, UNPAUSE};
pub(crate) use logs::LOGS;
pub(crate) use ls::{LIST, PS};
pub(crate) use port::PORT;
pub(crate) use prune::PRUNE;
pub(crate) use remove::RM;
pub(crate) use row::row;
pub(crate) use start::START;
pub(crate) use stats::STATS;
pub(crate) use top::TOP;
pub(crate) use update::UPDATE;
pub(crate) use wait::WAIT;
pub(crate) use why::WHY;

/// `run`.
pub(crate) static RUN: Command = Command::new(
    "run",
    "IMAGE [COMMAND] [ARG...]",
    "Create and run a new container from an image",
    action!(run::run),
)
.aliases(&["container run", "run"])
.flags(&[run::flags::CONTAINER, run::flags::RUN])
.arity(Arity::Min(1))
.flags_first()
.fills();

/// `create`.
pub(crate) static CREATE: Command = Command::new(
    "create",
    "IMAGE [COMMAND] [ARG...]",
    "Create a new container",
    action!(run::create),
)
.aliases(&["container create", "create"])
.flags(&[run::flags::CONTAINER])
.arity(Arity::Min(1))
.flags_first()
.fills();

/// `container …`.
pub(crate) static GROUP: Command = Command::group(
    "container",
    "Manage containers",
    &[
        &ATTACH,
        &COMMIT,
        &CP,
        &CREATE,
        &DIFF,
        &EXEC,
        &EXPORT,
        &INSPECT,
        &KILL,
        &LIST,
        &moving::LOAD,
        &LOGS,
        &PAUSE,
        &PORT,
        &PRUNE,
        &RENAME,
        &RESTART,
        &RM,
        &RUN,
        &moving::SAVE,
        &START,
        &STATS,
        &STOP,
        &TOP,
        &UNPAUSE,
        &UPDATE,
        &WAIT,
        &WHY,
    ],
);

/// How many containers are worked on at a time (Docker's number).
const PARALLEL: usize = 50;

/// Does something to each container, several at a time. Prints the name of each that it was
/// done to, in the order given; fails with all errors, one per line.
async fn each<'n, F>(cli: &Cli, names: &'n [String], operation: impl Fn(&'n str) -> F) -> Result
where
    F: Future<Output = Result>,
{
    let running = names.iter().map(|name| {
        let done = operation(name);
        async move { (name, done.await) }
    });
    let mut results = futures_util::stream::iter(running).buffered(PARALLEL);
    let mut failures = Failures::default();
    while let Some((name, result)) = results.next().await {
        match result {
            Ok(()) => cli.line(name)?,
            Err(error) => failures.add(error),
        }
    }
    failures.result()
}
