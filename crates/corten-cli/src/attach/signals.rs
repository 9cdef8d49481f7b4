//! Signals we get that are meant for the process we are attached to, and the size of the
//! terminal.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::client::{Client, component};
use crate::term;

/// The signals that are passed on, with their names.
const FORWARDED: &[(i32, &str)] = &[
    (1, "HUP"),
    (2, "INT"),
    (3, "QUIT"),
    (10, "USR1"),
    (12, "USR2"),
    (14, "ALRM"),
    (15, "TERM"),
    (18, "CONT"),
    (20, "TSTP"),
    (28, "WINCH"),
];

/// Catches signals from now on; the future passes them on to a container, for ever.
pub(crate) fn forward<'a>(client: &'a Client, id: &'a str) -> impl Future<Output = ()> + 'a {
    let caught: Vec<(Signal, &str)> = FORWARDED
        .iter()
        .filter_map(|(number, name)| Some((signal(SignalKind::from_raw(*number)).ok()?, *name)))
        .collect();
    async move {
        let mut next: FuturesUnordered<_> = caught.into_iter().map(receive).collect();
        while let Some((signal, name)) = next.next().await {
            let path = format!("/containers/{}/kill", component(id));
            if let Err(error) = client.post(path).query("signal", name).done().await {
                tracing::debug!(%error, signal = name, "signal not delivered");
            }
            next.push(receive((signal, name)));
        }
        std::future::pending::<()>().await;
    }
}

async fn receive((mut signal, name): (Signal, &'static str)) -> (Signal, &'static str) {
    signal.recv().await;
    (signal, name)
}

/// Rows and columns for a new terminal, as the API wants them.
pub(crate) fn initial_size() -> Option<Vec<usize>> {
    term::size().map(|(rows, columns)| vec![usize::from(rows), usize::from(columns)])
}

/// Tells a process (`/containers/ID` or `/exec/ID`) the size of our terminal, now and
/// whenever it changes, for ever.
pub(crate) async fn monitor_size(client: &Client, path: &str) {
    let changes = signal(SignalKind::window_change());
    resize(client, path).await;
    let Ok(mut changes) = changes else {
        return std::future::pending().await;
    };
    while changes.recv().await.is_some() {
        resize(client, path).await;
    }
    std::future::pending::<()>().await;
}

/// Gives a terminal another size for a moment, so that what runs in it draws itself anew for
/// those who just came. [`monitor_size`] then sets the right one.
pub(crate) async fn redraw(client: &Client, path: &str) {
    if let Some((rows, columns)) = term::size() {
        set_size(
            client,
            path,
            rows.saturating_add(1),
            columns.saturating_add(1),
        )
        .await;
    }
}

async fn resize(client: &Client, path: &str) {
    if let Some((rows, columns)) = term::size() {
        set_size(client, path, rows, columns).await;
    }
}

async fn set_size(client: &Client, path: &str, rows: u16, columns: u16) {
    let call = client
        .post(format!("{path}/resize"))
        .query("h", rows.to_string())
        .query("w", columns.to_string());
    if let Err(error) = call.done().await {
        tracing::debug!(%error, "the terminal's size was not taken");
    }
}
