//! `logs`.

use bollard_stubs::models::ContainerInspectResponse;
use tokio::io::AsyncWriteExt;
use tokio_util::io::StreamReader;

use super::when;
use crate::app::Cli;
use crate::attach;
use crate::client::{BodyReader, component};
use crate::command::{Command, action};
use crate::error::Result;
use crate::flags::{Arity, Flag, Parsed};

const FLAGS: &[Flag] = &[
    Flag::switch("details", "Show the attributes given to the log driver"),
    Flag::switch("follow", "Go on with what is written from now on").short('f'),
    Flag::text(
        "since",
        "Begin at this time (\"2013-01-02T13:23:37Z\") or so long ago (\"42m\")",
    ),
    Flag::text("tail", "Begin with so many lines before the end")
        .short('n')
        .default("all"),
    Flag::switch("timestamps", "Show when each line was written").short('t'),
    Flag::text(
        "until",
        "End at this time (\"2013-01-02T13:23:37Z\") or so long ago (\"42m\")",
    ),
];

/// `logs`.
pub(crate) static LOGS: Command = Command::new(
    "logs",
    "CONTAINER",
    "Fetch the logs of a container",
    action!(logs),
)
.aliases(&["container logs", "logs"])
.flags(&[FLAGS])
.arity(Arity::Exact(1));

async fn logs(cli: &Cli, flags: Parsed) -> Result {
    let Some(name) = flags.args.first() else {
        return Ok(());
    };
    let time = |flag: &str| {
        flags
            .nonempty(flag)
            .map(|text| when::timestamp(flag, text))
            .transpose()
    };
    let client = cli.client()?;
    let found: ContainerInspectResponse = client
        .get(format!("/containers/{}/json", component(name)))
        .json()
        .await?;
    let id = found.id.as_deref().unwrap_or(name);
    let answer = client
        .get(format!("/containers/{}/logs", component(id)))
        .query("stdout", "1")
        .query("stderr", "1")
        .query_opt("since", time("since")?)
        .query_opt("until", time("until")?)
        .flag("timestamps", flags.on("timestamps"))
        .flag("details", flags.on("details"))
        .flag("follow", flags.on("follow"))
        .query_opt("tail", flags.text("tail"))
        .send()
        .await?;
    let tty = found.config.and_then(|config| config.tty) == Some(true);
    copy(answer.reader(), tty).await
}

/// Copies a log to our outputs; a terminal's is not divided into streams.
async fn copy(mut reader: BodyReader, tty: bool) -> Result {
    let mut out = tokio::io::stdout();
    if tty {
        while let Some(bytes) = reader.next().await? {
            out.write_all(&bytes).await?;
            out.flush().await?;
        }
        return Ok(());
    }
    let chunks = futures_util::stream::try_unfold(reader, |mut reader| async move {
        match reader.next().await {
            Ok(Some(bytes)) => Ok(Some((bytes, reader))),
            Ok(None) => Ok(None),
            Err(error) => Err(std::io::Error::other(error)),
        }
    });
    let mut input = StreamReader::new(Box::pin(chunks));
    attach::demux(&mut input, &mut out, &mut tokio::io::stderr()).await?;
    Ok(())
}
