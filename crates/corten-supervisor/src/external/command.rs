//! How a runtime is called, and what it says when it fails.
//!
//! No call lasts for ever: what has not answered in its time is killed, with all that it has started
//! in its process group. It gets next to nothing of the environment of whoever started the container.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Deserialize;

use super::{ExternalRuntime, Refused, bundle};
use crate::children::Busy;

/// The longest of a runtime's words that are read, bytes.
const LONGEST: u64 = 64 * 1024;
/// Where a runtime finds programs that it calls.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long what was killed may take to end.
const KILLED: Duration = Duration::from_secs(1);

/// A runtime, the directory of the container it is called about, and which call it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a> {
    pub(super) runtime: &'a ExternalRuntime,
    pub(super) directory: &'a Path,
    pub(super) number: u32,
}

/// A runtime at work.
pub(super) struct Call {
    runtime: ExternalRuntime,
    what: &'static str,
    program: Option<String>,
    child: Child,
    log: PathBuf,
    said: PathBuf,
    /// Its child has been waited for.
    over: bool,
    busy: Busy,
}

/// Whoever does not wait any more ends it.
impl Drop for Call {
    fn drop(&mut self) {
        if !self.over {
            self.end();
        }
        for file in [&self.log, &self.said] {
            if let Err(error) = std::fs::remove_file(file)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::debug!(path = %file.display(), %error, "left until the end");
            }
        }
    }
}

impl Words<'_> {
    fn log(self) -> PathBuf {
        self.directory.join(format!("log{}", self.number))
    }

    /// What every call begins with.
    pub(super) fn command(self) -> Command {
        let mut command = Command::new(&self.runtime.program);
        command.args(&self.runtime.args);
        command.arg("--root").arg(self.directory.join("state"));
        command.arg("--log").arg(self.log());
        command.args(["--log-format", "json"]);
        // Variables such as NOTIFY_SOCKET mean something to runtimes.
        command.env_clear().env("PATH", PATH);
        command.process_group(0);
        crate::sys::end_with_us(&mut command);
        command
    }

    /// Calls it. `stdio`: what the container's process is to have, else none of ours. `program`: what
    /// the process is to become.
    pub(super) fn begin(
        self,
        mut command: Command,
        stdio: Option<[OwnedFd; 3]>,
        what: &'static str,
        program: Option<&String>,
    ) -> Result<Call, Refused> {
        let failed = |error: &dyn std::fmt::Display| failed(self.runtime, what, error);
        let (log, said) = (
            self.log(),
            self.directory.join(format!("said{}", self.number)),
        );
        bundle::write_closed(&log, b"").map_err(|error| failed(&error))?;
        match stdio {
            Some([stdin, stdout, stderr]) => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
            }
            // Not a pipe: whoever inherits it would keep it open.
            None => {
                let said = bundle::write_closed(&said, b"").map_err(|error| failed(&error))?;
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(said);
            }
        }
        let busy = Busy::begin();
        let child = command.spawn().map_err(|error| {
            failed(&format_args!("{}: {error}", self.runtime.program.display()))
        })?;
        Ok(Call {
            runtime: self.runtime.clone(),
            what,
            program: program.cloned(),
            child,
            log,
            said,
            over: false,
            busy,
        })
    }
}

impl Call {
    /// Waits for its end in the event loop. Nobody is reaped as long as what is returned is there.
    pub(super) async fn answered(mut self, within: Duration) -> Result<Self, Refused> {
        let watched = self.pidfd().and_then(crate::sys::watch);
        let pidfd = watched.map_err(|error| self.failed(&error))?;
        let ended = async |within| {
            let ready = tokio::time::timeout(within, pidfd.readable()).await;
            matches!(ready, Ok(Ok(_)))
        };
        if !ended(within).await {
            self.end();
            ended(KILLED).await;
            return Err(self.silent(within));
        }
        self.judge()
    }

    fn pidfd(&self) -> std::io::Result<OwnedFd> {
        Ok(pidfd_open(
            Pid::from_child(&self.child),
            PidfdFlags::empty(),
        )?)
    }

    /// Kills it, and what it has started.
    fn end(&mut self) {
        let group = Pid::from_child(&self.child);
        if let Err(error) = kill_process_group(group, Signal::KILL) {
            tracing::debug!(%error, "the runtime has just ended");
        }
    }

    fn silent(&mut self, within: Duration) -> Refused {
        self.over = matches!(self.child.try_wait(), Ok(Some(_)));
        let words = format!("did not answer within {} s", within.as_secs());
        self.failed(&words)
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> Refused {
        failed(&self.runtime, self.what, error)
    }

    /// Keeps a process that it has left to us, whose end somebody will wait for.
    pub(super) fn keep(&self, pid: i32, pidfd: BorrowedFd<'_>) -> std::io::Result<()> {
        self.busy.keep(pid, pidfd)
    }

    /// What has become of it.
    fn judge(mut self) -> Result<Self, Refused> {
        let status = self.child.wait().map_err(|error| self.failed(&error))?;
        self.over = true;
        if status.success() {
            return Ok(self);
        }
        let words = last_error(&read(&self.log)).unwrap_or_else(|| {
            let text = read(&self.said);
            let line = text.lines().rev().find(|line| !line.trim().is_empty());
            line.map_or_else(|| status.to_string(), str::to_owned)
        });
        let code = code(&words, self.program.as_ref());
        Err(Refused {
            code,
            ..self.failed(&for_clients(words, code))
        })
    }
}

fn failed(runtime: &ExternalRuntime, what: &str, error: &dyn std::fmt::Display) -> Refused {
    let (name, words) = (&runtime.name, error.to_string());
    // Many begin with their own name.
    let own = words
        .strip_prefix(name.as_str())
        .is_some_and(|rest| rest.starts_with([' ', ':']));
    let message = match own {
        true => format!("OCI runtime {what} failed: {words}"),
        false => format!("OCI runtime {what} failed: {name}: {words}"),
    };
    Refused {
        code: None,
        message,
    }
}

fn read(path: &Path) -> String {
    use std::io::Read as _;
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
    if let Err(error) = read {
        tracing::debug!(path = %path.display(), %error, "nothing is read of it");
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The last error of a log of JSON lines.
fn last_error(log: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        level: String,
        msg: String,
    }
    log.lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .rfind(|line| matches!(line.level.as_str(), "error" | "fatal" | ""))
        .map(|line| line.msg)
}

/// The exit code that a failure to execute a program has, as Docker reads it from the words.
fn code(words: &str, program: Option<&String>) -> Option<u8> {
    let words = words.to_lowercase();
    let program = program?.to_lowercase();
    if !words.contains(&program) {
        return None;
    }
    let any = |list: &[&str]| list.iter().any(|known| words.contains(known));
    if any(&[
        "executable file not found",
        "no such file or directory",
        "not found in $path",
    ]) {
        Some(127)
    } else if any(&["permission denied", "exec format error", "is a directory"])
        || words.contains("executable file") && words.contains("not executable")
    {
        Some(126)
    } else {
        None
    }
}

/// Clients tell the exit code by Go's words for an error, which begin small; a runtime in C begins them
/// with a capital, or has others.
fn for_clients(mut words: String, code: Option<u8>) -> String {
    let known = match code {
        Some(127) => ["executable file not found", "no such file or directory"],
        Some(126) => ["is a directory", "permission denied"],
        _ => return words,
    };
    if known.iter().any(|known| words.contains(known)) || words.contains("exec format error") {
        return words;
    }
    // As long as the words, and cut where those are.
    let small = words.to_ascii_lowercase();
    match known
        .iter()
        .find_map(|known| Some((small.find(known)?, known)))
    {
        Some((at, known)) => words.replace_range(at..at + known.len(), known),
        None => words = format!("{words}: {}", known[1]),
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtimes_name_is_said_once() {
        let runtime = ExternalRuntime {
            name: "runc".to_owned(),
            program: "/x/runc".into(),
            args: Vec::new(),
        };
        for (said, told) in [
            (
                "runc create failed: x",
                "OCI runtime create failed: runc create failed: x",
            ),
            (
                "runcs are many",
                "OCI runtime create failed: runc: runcs are many",
            ),
            (
                "no such file",
                "OCI runtime create failed: runc: no such file",
            ),
        ] {
            assert_eq!(failed(&runtime, "create", &said).message, told);
        }
    }

    #[tokio::test]
    async fn who_does_not_answer_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = ExternalRuntime {
            name: "slow".to_owned(),
            program: "/bin/sh".into(),
            args: Vec::new(),
        };
        let words = Words {
            runtime: &runtime,
            directory: dir.path(),
            number: 1,
        };
        // Without what every call begins with: a shell takes none of it.
        let mut command = Command::new("/bin/sh");
        command.process_group(0);
        command.args(["-c", "sleep 1000 & echo $! > \"$0\"; wait"]);
        let pid = dir.path().join("pid");
        command.arg(&pid);
        let call = words.begin(command, None, "kill", None).unwrap();
        while !std::fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let told = call.answered(Duration::ZERO).await.err().unwrap().message;
        assert_eq!(
            told,
            "OCI runtime kill failed: slow: did not answer within 0 s"
        );
        let below = std::fs::read_to_string(&pid).unwrap();
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", below.trim()));
            stat.ok()
                .and_then(|stat| stat.rsplit_once(") ")?.1.chars().next())
        };
        // Killed with it; init may still have to reap it.
        while !matches!(state(), None | Some('Z')) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn what_failed_is_read() {
        let log = "{\"level\":\"warning\",\"msg\":\"w\"}\n\
                   {\"level\":\"error\",\"msg\":\"exec: \\\"nope\\\": executable file not found in $PATH\"}\n\
                   {\"level\":\"info\",\"msg\":\"i\"}\nno json\n";
        let words = last_error(log).unwrap();
        assert_eq!(words, "exec: \"nope\": executable file not found in $PATH");
        assert_eq!(last_error(""), None);
        for (words, program, expected) in [
            (words.as_str(), "nope", Some(127)),
            (
                "executable file `nope` not found in $PATH: No such file or directory",
                "nope",
                Some(127),
            ),
            ("open executable: Permission denied: /x", "/x", Some(126)),
            ("mount `/a`: No such file or directory", "nope", None),
            ("out of memory", "nope", None),
        ] {
            assert_eq!(code(words, Some(&program.to_owned())), expected, "{words}");
        }
        assert_eq!(code("no such file or directory", None), None);
    }

    #[test]
    fn clients_know_the_words() {
        for (said, code, told) in [
            (
                "exec: \"x\": executable file not found in $PATH",
                Some(127),
                "",
            ),
            (
                "executable file `x` not found in $PATH: No such file or directory",
                Some(127),
                "executable file `x` not found in $PATH: no such file or directory",
            ),
            (
                "`x` not found in $PATH",
                Some(127),
                "`x` not found in $PATH: no such file or directory",
            ),
            (
                "open `é`: Permission denied",
                Some(126),
                "open `é`: permission denied",
            ),
            (
                "executable file `x` is not executable",
                Some(126),
                "executable file `x` is not executable: permission denied",
            ),
            ("exec x: exec format error", Some(126), ""),
            ("mount `/a`: No such file or directory", None, ""),
        ] {
            let told = if told.is_empty() { said } else { told };
            assert_eq!(for_clients(said.to_owned(), code), told);
        }
    }
}
