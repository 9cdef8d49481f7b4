//! What is said on a supervisor's socket.
//!
//! A client sends one request per connection: a frame (length as `u32` in network order, then
//! JSON). The supervisor answers with one frame, [`Reply`]; after an attach or an attached
//! exec the connection then is the stream itself, exactly as it goes over Docker's hijacked
//! connections: raw bytes for a terminal, `stdcopy` frames otherwise; the client's half is the
//! process's input. After a wait, a second frame follows with the exit, and the connection
//! ends when the supervisor does.
//!
//! Versioned: a request carries [`VERSION`]; a supervisor refuses newer ones in words. Fields
//! are only ever added, with defaults.

use std::io;

use corten_network::PortMapping;
use corten_oci::runtime_spec::{LinuxResources, Process, Spec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Version of this protocol.
pub const VERSION: u32 = 1;
/// Largest frame, in bytes.
const MAX_FRAME: u32 = 4 << 20;
/// What a frame has to hold besides an [`ExecSpec`], at the most.
const BESIDES: usize = 4 << 10;

/// How a container's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code as Docker reports it: 128 + n after signal n.
    pub code: u8,
    /// The out-of-memory killer struck inside.
    pub oom: bool,
    /// When, RFC 3339 with nanoseconds.
    pub at: String,
    /// Why it could not even be started, when a restart failed.
    #[serde(default)]
    pub error: Option<String>,
    /// To a stop: it had to be killed, and why the signal before that did not end it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced: Option<Forced>,
}

/// Why a first process has outlived the signal it was to end on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forced {
    /// It ignores the signal.
    Ignored,
    /// It does nothing about it, and a first process has no default action.
    NoHandler,
    /// It handles the signal, but had not ended in time.
    Slow,
}

/// Which streams of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// A process to be executed in a running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Its id, chosen by the client.
    pub id: String,
    /// The process.
    pub process: Process,
    /// Which streams a client may attach to.
    pub streams: Streams,
    /// Initial size of its terminal, if it has one.
    pub size: Option<Size>,
}

impl ExecSpec {
    /// Whether a supervisor can be told of it.
    #[must_use]
    pub fn fits(&self) -> bool {
        let most = MAX_FRAME as usize - BESIDES;
        serde_json::to_vec(self).is_ok_and(|json| json.len() <= most)
    }
}

/// What a client asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Ask {
    /// What is going on.
    Status,
    /// Join the streams, from now on.
    Attach(Streams),
    /// Send a signal to the first process. `manual`: the user wants it down, so no restart.
    Signal {
        /// The signal's number.
        signal: i32,
        /// Suppress the restart policy for the exit that follows.
        manual: bool,
    },
    /// Signal, wait, kill; answered when it is down.
    Stop {
        /// Instead of the container's stop signal.
        signal: Option<i32>,
        /// Seconds before SIGKILL instead of the container's; negative: never.
        timeout: Option<i64>,
    },
    /// Size of the terminal.
    Resize(Size),
    /// Answered at once; then a frame with the next exit.
    Wait,
    /// The engine's rows say something else of the container's networks by now: bring it in line
    /// with them.
    Network,
    /// Other limits. Whoever moves processes into a further hierarchy freezes them for that: not
    /// somebody who may be killed in it without their being killed, too.
    Update {
        /// What changes.
        resources: Box<LinuxResources>,
        /// Refused as [`Refusal::Busy`] while limits are being changed. An older corten waits for that.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unless_busy: bool,
    },
    /// Freeze.
    Pause,
    /// Thaw.
    Unpause,
    /// It is about to be saved (CRIU): answered with what that needs. The asker then says, with a
    /// frame, whether it has been; its connection's end says no. Whatever ends it between the two
    /// is the saving: no restart.
    Checkpoint {
        /// It goes on afterwards.
        leave_running: bool,
    },
    /// Pids inside, in the host's namespace.
    Pids,
    /// Remember a process to be executed.
    ExecCreate(Box<ExecSpec>),
    /// Execute it; then the connection is its stream unless `detach`.
    ExecStart {
        /// Which one.
        id: String,
        /// Do not attach.
        detach: bool,
        /// Terminal size known only now.
        size: Option<Size>,
        /// What it is, if it has not been created here before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spec: Option<Box<ExecSpec>>,
    },
    /// What became of it.
    ExecInspect {
        /// Which one.
        id: String,
    },
    /// Size of its terminal.
    ExecResize {
        /// Which one.
        id: String,
        /// The size.
        size: Size,
    },
}

/// A request: what, in which version.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What.
    #[serde(flatten)]
    pub ask: Ask,
}

/// What a supervisor does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Preparing the first start.
    Starting,
    /// The container runs.
    Running,
    /// It runs, frozen.
    Paused,
    /// Waiting before the next start.
    Restarting,
    /// Cleaning up after the end.
    Ending,
}

/// Answer to [`Ask::Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What is going on.
    pub phase: Phase,
    /// First process, in the host's namespace; 0 when there is none.
    pub pid: i32,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// How often it was restarted.
    pub restarts: u32,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Processes being executed right now.
    pub execs: Vec<String>,
}

/// Answer to [`Ask::ExecInspect`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecStatus {
    /// As it was created.
    pub spec: ExecSpec,
    /// Whether it runs now.
    pub running: bool,
    /// Its pid in the host's namespace; 0 before it runs.
    pub pid: i32,
    /// Its exit code, once it has ended.
    pub exit_code: Option<u8>,
}

/// Why something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// There is no such exec.
    NoSuchExec,
    /// The container does not run (any more).
    NotRunning,
    /// Its state is in the way.
    Conflict,
    /// Something else is being done, and the client did not mean to wait for it.
    Busy,
    /// The program cannot be executed: exit code 126.
    NotExecutable,
    /// The program does not exist: exit code 127.
    NotFound,
    /// Anything else.
    Failed,
}

/// What a supervisor answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// Streams follow.
    Attached {
        /// Raw (a terminal) rather than `stdcopy` frames.
        tty: bool,
    },
    /// It has ended.
    Exit(Exit),
    /// To [`Ask::Status`].
    Status(Status),
    /// To [`Ask::Pids`].
    Pids(Vec<i32>),
    /// To [`Ask::ExecInspect`].
    Exec(Box<ExecStatus>),
    /// To [`Ask::Checkpoint`].
    Document {
        /// Its first process, in the host's namespace.
        pid: i32,
        /// The runtime-spec document it was made from.
        spec: Box<Spec>,
    },
    /// No.
    Refused {
        /// The kind of refusal.
        why: Refusal,
        /// In words.
        message: String,
    },
}

impl Reply {
    pub(crate) fn refuse(why: Refusal, message: impl Into<String>) -> Self {
        Self::Refused {
            why,
            message: message.into(),
        }
    }
}

/// What the supervisor tells whoever launched it, once.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Launched {
    /// The container runs.
    Started {
        /// Its first process.
        pid: i32,
        /// Published ports.
        ports: Vec<PortMapping>,
    },
    /// It could not be started; nothing is left behind.
    Failed {
        /// Exit code Docker would give: 126, 127, else 128.
        code: u8,
        /// Why.
        message: String,
    },
}

/// Writes a frame.
///
/// # Errors
/// The connection's; `InvalidData` when the value is no JSON or too long.
pub async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &impl Serialize,
) -> io::Result<()> {
    stream.write_all(&frame(value)?).await
}

/// A frame's bytes.
pub(crate) fn frame(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(value)?;
    let length = u32::try_from(json.len()).ok().filter(|n| *n <= MAX_FRAME);
    let length =
        length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "frame too long"))?;
    Ok([&length.to_be_bytes()[..], &json].concat())
}

/// Reads a frame.
///
/// # Errors
/// The connection's; `InvalidData` when it is too long or not what is expected.
pub async fn receive<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = stream.read_u32().await?;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    let mut json = vec![0; length as usize];
    stream.read_exact(&mut json).await?;
    Ok(serde_json::from_slice(&json)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_round_trip_and_are_bounded() {
        let (mut a, mut b) = tokio::io::duplex(1 << 16);
        let request = Request {
            version: VERSION,
            ask: Ask::Signal {
                signal: 15,
                manual: true,
            },
        };
        send(&mut a, &request).await.unwrap();
        let read: Request = receive(&mut b).await.unwrap();
        assert!(matches!(
            read.ask,
            Ask::Signal {
                signal: 15,
                manual: true
            }
        ));
        a.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let refused = receive::<Request>(&mut b).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_wire_format_is_stable() {
        let json = |ask| serde_json::to_string(&Request { version: 1, ask }).unwrap();
        insta::assert_snapshot!(json(Ask::Status), @r#"{"version":1,"op":"status"}"#);
        insta::assert_snapshot!(
            json(Ask::Stop { signal: None, timeout: Some(10) }),
            @r#"{"version":1,"op":"stop","signal":null,"timeout":10}"#
        );
        insta::assert_snapshot!(
            json(Ask::Attach(Streams { stdin: true, stdout: true, stderr: false })),
            @r#"{"version":1,"op":"attach","stdin":true,"stdout":true,"stderr":false}"#
        );
        let resources = Box::new(LinuxResources::default());
        insta::assert_snapshot!(
            json(Ask::Update { resources, unless_busy: false }),
            @r#"{"version":1,"op":"update","resources":{}}"#
        );
        let start = |spec| Ask::ExecStart {
            id: "e".to_owned(),
            detach: true,
            size: None,
            spec,
        };
        // As an older corten asks for what it has created before.
        let before = r#"{"version":1,"op":"exec_start","id":"e","detach":true,"size":null}"#;
        assert_eq!(json(start(None)), before);
        let read: Request = serde_json::from_str(before).unwrap();
        assert!(matches!(read.ask, Ask::ExecStart { spec: None, .. }));
        let told = json(start(Some(Box::new(exec("e")))));
        let read: Request = serde_json::from_str(&told).unwrap();
        assert!(matches!(read.ask, Ask::ExecStart { spec: Some(spec), .. } if spec.id == "e"));
    }

    fn exec(id: &str) -> ExecSpec {
        ExecSpec {
            id: id.to_owned(),
            process: Process::default(),
            streams: Streams::default(),
            size: None,
        }
    }

    #[test]
    fn what_fits_can_be_told() {
        let of = |length: usize| exec(&"e".repeat(length));
        let bare = serde_json::to_vec(&of(0)).unwrap().len();
        let most = MAX_FRAME as usize - BESIDES - bare;
        let largest = of(most);
        assert!(largest.fits() && !of(most + 1).fits());
        let ask = Ask::ExecStart {
            id: "0".repeat(64),
            detach: false,
            size: Some(Size {
                rows: u16::MAX,
                cols: u16::MAX,
            }),
            spec: Some(Box::new(largest)),
        };
        assert!(
            frame(&Request {
                version: VERSION,
                ask
            })
            .is_ok()
        );
    }
}
