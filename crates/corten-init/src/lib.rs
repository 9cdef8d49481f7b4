//! The program that is a container's first process with `--init`.
//!
//! It starts the container's own program, passes signals on to it, reaps what is orphaned, and
//! ends as it ends. It is a program of its own, a few kilobytes without any library
//! (`program/main.rs`), so that nothing of this binary is inside a container where
//! `/proc/1/exe` would lead to it.

/// The program: a static ELF executable for this target.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// Where containers have it (Docker's place).
pub const PATH: &str = "/sbin/docker-init";

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::fs::OpenOptionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// The program as a file that goes when the test ends.
    struct Installed(PathBuf);

    impl Installed {
        fn new(name: &str) -> Self {
            let name = format!("corten-init-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o700)
                .open(&path)
                .unwrap();
            file.write_all(PROGRAM).unwrap();
            Self(path)
        }

        fn command(&self, args: &[&str]) -> Command {
            let mut command = Command::new(&self.0);
            command.arg("--").args(args);
            command
        }

        /// Other tests fork while the file is open for writing: then it cannot be executed
        /// for a moment.
        fn spawn(&self, command: &mut Command) -> Child {
            loop {
                match command.spawn() {
                    Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                        std::thread::yield_now();
                    }
                    other => return other.unwrap(),
                }
            }
        }
    }

    impl Drop for Installed {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).unwrap();
        }
    }

    #[test]
    fn it_is_small_and_needs_no_interpreter() {
        assert_eq!(&PROGRAM[..4], b"\x7fELF");
        assert!(PROGRAM.len() < 32 * 1024, "{} bytes", PROGRAM.len());
        assert!(!PROGRAM.windows(7).any(|w| w == b"ld-linux"[..7].as_ref()));
    }

    #[test]
    fn it_ends_as_its_child_does() {
        let init = Installed::new("ends");
        for (args, code) in [
            (&["true"][..], 0),
            (&["sh", "-c", "exit 7"], 7),
            (&["/bin/sh", "-c", "kill -9 $$"], 137),
            (&["sh", "-c", "kill -TERM $$"], 143),
            (&["/nowhere/at-all"], 127),
            (&["no-such-program"], 127),
            (&["/etc/passwd"], 126),
        ] {
            let mut command = init.command(args);
            command.stderr(Stdio::null());
            let status = init.spawn(&mut command).wait().unwrap();
            assert_eq!(status.code(), Some(code), "{args:?}: {status:?}");
            assert_eq!(status.signal(), None);
        }
    }

    #[test]
    fn it_says_what_it_cannot_execute() {
        let init = Installed::new("says");
        let mut command = init.command(&["no-such-program"]);
        command.stderr(Stdio::piped());
        let output = init.spawn(&mut command).wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "init: cannot execute no-such-program: no such file or directory\n"
        );
    }

    #[test]
    fn the_child_has_no_signal_blocked_and_its_environment() {
        let init = Installed::new("child");
        let mut command = init.command(&["sh", "-c", "grep SigBlk /proc/self/status; echo $X"]);
        command.env("X", "kept").stdout(Stdio::piped());
        let output = init.spawn(&mut command).wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "SigBlk:\t0000000000000000\nkept\n"
        );
    }

    #[test]
    fn signals_are_passed_on() {
        let init = Installed::new("signals");
        let script = "trap 'echo got TERM; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
        let mut command = init.command(&["sh", "-c", script]);
        command.stdout(Stdio::piped());
        let mut child = init.spawn(&mut command);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "got TERM");
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}
