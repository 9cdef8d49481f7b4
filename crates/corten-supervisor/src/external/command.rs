//! How a runtime is called, and what it says when it fails.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::{ExternalRuntime, Refused};

/// The longest of a runtime's words that are read, bytes.
const LONGEST: u64 = 64 * 1024;

/// A runtime and the directory of the container it is called about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a> {
    pub(super) runtime: &'a ExternalRuntime,
    pub(super) directory: &'a Path,
}

impl Words<'_> {
    /// What every call begins with.
    pub(super) fn command(self) -> Command {
        let mut command = Command::new(&self.runtime.program);
        command.args(&self.runtime.args);
        command.arg("--root").arg(self.directory.join("state"));
        command.arg("--log").arg(self.directory.join("log"));
        command.args(["--log-format", "json"]);
        command
    }

    /// Calls it, and waits. `stdio`: what the container's process is to have, else none of ours.
    /// `program`: what the process is to become.
    pub(super) fn call(
        self,
        mut command: Command,
        stdio: Option<[OwnedFd; 3]>,
        what: &str,
        program: Option<&String>,
    ) -> Result<(), Refused> {
        let name = &self.runtime.name;
        let failed = |error: &dyn std::fmt::Display| Refused {
            code: None,
            message: format!("OCI runtime {what} failed: {name}: {error}"),
        };
        let (log, said) = (self.directory.join("log"), self.directory.join("stderr"));
        std::fs::write(&log, "").map_err(|error| failed(&error))?;
        match stdio {
            Some([stdin, stdout, stderr]) => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
            }
            // Not a pipe: whoever inherits it would keep it open.
            None => {
                let said = File::create(&said).map_err(|error| failed(&error))?;
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(said);
            }
        }
        let status = command.status().map_err(|error| {
            failed(&format_args!("{}: {error}", self.runtime.program.display()))
        })?;
        if status.success() {
            return Ok(());
        }
        let words = last_error(&read(&log)).unwrap_or_else(|| {
            let text = read(&said);
            let line = text.lines().rev().find(|line| !line.trim().is_empty());
            line.map_or_else(|| status.to_string(), str::to_owned)
        });
        Err(Refused {
            code: code(&words, program),
            ..failed(&words)
        })
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
