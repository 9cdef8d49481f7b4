//! What a build tells while it runs: a stream of [`BuildEvent`]s, good enough for
//! BuildKit-like progress (one vertex per step of the graph, running in parallel) and for
//! the classic `Step n/m` stream (every instruction of the stages that are built, numbered).
//!
//! Order: a vertex's `Started` comes before everything else about it, its `Completed` is its
//! last event. Vertices interleave.

use std::sync::Arc;

use corten_oci::{DiffId, Digest, ImageRef};
use serde::{Deserialize, Serialize};

/// Receives events, on any thread; must not block for long.
pub type EventSink = Arc<dyn Fn(BuildEvent) + Send + Sync>;

/// `error` of vertices that ended because the build did.
pub const CANCELLED: &str = "build cancelled";

/// Something that happened. Travels as JSON: `{"corten": {"event": "started", …}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum BuildEvent {
    /// A vertex begins.
    Started(Vertex),
    /// Output of a RUN step.
    Log {
        /// The vertex.
        id: u32,
        /// Which stream.
        stream: LogStream,
        /// What it wrote; not UTF-8 is replaced. Not necessarily whole lines.
        data: String,
    },
    /// Something inside a vertex makes progress: a download, an extraction.
    Progress {
        /// The vertex.
        id: u32,
        /// What, for example `sha256:… downloading`.
        text: String,
        /// Bytes so far, where that is known.
        current: Option<u64>,
        /// Bytes in all, where that is known.
        total: Option<u64>,
    },
    /// A vertex ended.
    Completed {
        /// The vertex.
        id: u32,
        /// Nothing ran: its result was known.
        cached: bool,
        /// How long it took, in milliseconds.
        ms: u64,
        /// Why it failed, in one line.
        error: Option<String>,
        /// What it made.
        result: Option<StepResult>,
    },
    /// Something the user should know; the build goes on.
    Warning {
        /// The message, in one line.
        message: String,
        /// Line of the Dockerfile, from 1.
        line: Option<u32>,
        /// More about it: lines to be shown where somebody wants to know.
        #[serde(default)]
        more: Vec<String>,
    },
    /// The image is stored and tagged. The last event of a successful build that makes one.
    Image {
        /// The image.
        id: Digest,
        /// Its new names.
        tags: Vec<ImageRef>,
    },
}

/// A node of the graph, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vertex {
    /// Its number in this build's events.
    pub id: u32,
    /// How BuildKit would call it: `[builder 2/6] WORKDIR /app`.
    pub name: String,
    /// Made up by the builder (`[internal] …`, `exporting to image`), not written by the user.
    pub internal: bool,
    /// The instruction this is, for the classic stream; absent for internal vertices.
    pub instruction: Option<Instruction>,
}

/// One instruction of the Dockerfile, in the classic builder's terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// `n` of `Step n/m`: counted from 1 in the Dockerfile's order, over the stages built.
    pub step: u32,
    /// `m` of `Step n/m`.
    pub steps: u32,
    /// The instruction as written, on one line: `COPY go.mod go.sum ./`.
    pub text: String,
    /// Line of the Dockerfile, from 1.
    pub line: u32,
    /// Changes only the configuration; not a vertex of its own in BuildKit's display.
    pub config_only: bool,
}

/// What a step made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    /// What identifies the state after this step, for display (` ---> 0123456789ab`): the
    /// image's id where there is one (FROM an image, the last step), else the step's cache key.
    pub id: String,
    /// The layer it made, if it made one.
    pub layer: Option<DiffId>,
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}
