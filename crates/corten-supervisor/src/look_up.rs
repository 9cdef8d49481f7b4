//! Looking up the name of a log host. The C library's resolver blocks, streams must not wait for a
//! name server that is gone, and where processes are cloned there is no second thread to wait in: a
//! process of our own program does, and is killed once nobody waits for it any more.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::children::Busy;

/// The face that looks up `HOST:PORT`.
pub const FACE: &str = "look-up";
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// For how long its answer is believed. A lost connection is made anew every now and then.
const FRESH: Duration = Duration::from_secs(30);

/// Looks up its argument, and prints the first address or why there is none.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    let [to] = args else {
        eprintln!("{FACE}: expected HOST:PORT");
        return ExitCode::FAILURE;
    };
    let to = to.to_string_lossy();
    match to.to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(address)) => {
            println!("{address}");
            ExitCode::SUCCESS
        }
        Ok(None) => {
            eprintln!("{to} has no address");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Looks up names, and keeps the last address.
pub(crate) struct Addresses {
    program: PathBuf,
    last: RefCell<Option<Known>>,
}

#[derive(Clone)]
struct Known {
    name: String,
    address: SocketAddr,
    since: Instant,
}

impl Default for Addresses {
    fn default() -> Self {
        Self::from("/proc/self/exe")
    }
}

impl From<&str> for Addresses {
    /// By a program with our [`FACE`].
    fn from(program: &str) -> Self {
        Self {
            program: program.into(),
            last: RefCell::default(),
        }
    }
}

impl Addresses {
    /// The address of `HOST:PORT`. Where it cannot be looked up again, the one of last time.
    pub(crate) async fn of(&self, to: &str) -> io::Result<SocketAddr> {
        if let Ok(address) = to.parse() {
            return Ok(address);
        }
        let last = self.last.borrow().clone();
        let last = last.filter(|known| known.name == to);
        if let Some(known) = last.as_ref().filter(|known| known.since.elapsed() < FRESH) {
            return Ok(known.address);
        }
        let address = match (self.look_up(to).await, last) {
            (Ok(address), _) => address,
            (Err(error), Some(known)) => {
                tracing::debug!(to, %error, "not looked up again");
                known.address
            }
            (Err(error), None) => return Err(error),
        };
        *self.last.borrow_mut() = Some(Known {
            name: to.to_owned(),
            address,
            since: Instant::now(),
        });
        Ok(address)
    }

    async fn look_up(&self, to: &str) -> io::Result<SocketAddr> {
        let _busy = Busy::begin();
        let asked = tokio::process::Command::new(&self.program)
            .args([FACE, to])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let told = tokio::time::timeout(PATIENCE, asked).await.map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "{to} could not be looked up within {} s",
                    PATIENCE.as_secs()
                ),
            )
        })??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if told.status.success()
            && let Ok(address) = text(&told.stdout).parse()
        {
            return Ok(address);
        }
        let why = match text(&told.stderr) {
            why if why.is_empty() => format!("{to} could not be looked up: {}", told.status),
            why => why,
        };
        Err(io::Error::other(why))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// A program that writes its number to `pid`, adds a line to `calls`, and does this. A child
    /// writes it: what this process has open for writing, others that are just being started by
    /// other tests have, too, and nobody can execute it.
    fn program(dir: &Path, does: &str) -> Addresses {
        let path = dir.join("program");
        let script = format!(
            "#!/bin/sh\ncd {}\necho $* >>calls\necho $$ >pid.new\nmv pid.new pid\n{does}\n",
            dir.display()
        );
        let write = "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\"";
        let mut writer = Command::new("/bin/sh");
        writer.args(["-c", write]).arg(&path).arg(script);
        assert!(writer.status().unwrap().success());
        Addresses::from(path.to_str().unwrap())
    }

    #[tokio::test]
    async fn numbers_need_no_lookup_and_names_one() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = program(dir.path(), "echo 192.0.2.1:514");
        let numbers = addresses.of("[::1]:514").await.unwrap();
        assert_eq!(numbers.to_string(), "[::1]:514");
        assert!(!dir.path().join("calls").exists());
        for _ in 0..3 {
            let address = addresses.of("logs.example:514").await.unwrap();
            assert_eq!(address.to_string(), "192.0.2.1:514");
        }
        let calls = std::fs::read_to_string(dir.path().join("calls")).unwrap();
        assert_eq!(calls, "look-up logs.example:514\n");
    }

    #[tokio::test]
    async fn what_has_no_address_says_why() {
        let dir = tempfile::tempdir().unwrap();
        for (does, why) in [
            (
                "echo 'Name or service not known' >&2; exit 1",
                "Name or service not known",
            ),
            ("exit 3", "a:1 could not be looked up: exit status: 3"),
            (
                "echo nonsense",
                "a:1 could not be looked up: exit status: 0",
            ),
        ] {
            let error = program(dir.path(), does).of("a:1").await.unwrap_err();
            assert_eq!(error.to_string(), why);
        }
    }

    #[tokio::test]
    async fn the_last_address_serves_while_names_are_not_to_be_had() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = program(dir.path(), "exit 1");
        let address: SocketAddr = "192.0.2.7:1".parse().unwrap();
        let since = Instant::now().checked_sub(FRESH).unwrap();
        *addresses.last.borrow_mut() = Some(Known {
            name: "a:1".to_owned(),
            address,
            since,
        });
        assert_eq!(addresses.of("a:1").await.unwrap(), address);
        assert!(dir.path().join("calls").exists());
        assert!(addresses.of("b:1").await.is_err());
    }

    /// Others go on while a name server does not answer, and nobody is left who waits for it.
    #[tokio::test(flavor = "current_thread")]
    async fn a_lookup_that_hangs_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = program(dir.path(), "exec sleep 1000");
        let began = async {
            loop {
                if let Ok(pid) = std::fs::read_to_string(dir.path().join("pid")) {
                    return pid.trim().to_owned();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let pid = tokio::select! {
            found = addresses.of("a:1") => panic!("it did not hang: {found:?}"),
            pid = began => pid,
        };
        let deadline = Instant::now() + PATIENCE;
        let lives = || {
            std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| !stat.contains(") Z"))
        };
        while lives() {
            assert!(Instant::now() < deadline, "process {pid} still waits");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn the_face_wants_one_name() {
        assert_eq!(main(&[]), ExitCode::FAILURE);
        assert_eq!(main(&["127.0.0.1:1".into()]), ExitCode::SUCCESS);
        assert_eq!(main(&["127.0.0.1".into()]), ExitCode::FAILURE);
    }
}
