//! A throw-away engine for one test: its own root (and so its own run directory, bridge,
//! nftables table and cgroup parent), removed with everything in it when the test ends,
//! passed or failed.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::pty::OpenptFlags;
use tempfile::TempDir;

/// How long a condition may take to come true before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_corten"))
}

/// One engine, and a Docker configuration directory of its own.
pub(crate) struct Engine {
    dir: TempDir,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        Self {
            code: output
                .status
                .code()
                .unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default()),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Engine {
    /// An empty engine.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("corten-e2e-")
            .tempdir()
            .unwrap();
        fs::create_dir_all(dir.path().join("docker")).unwrap();
        Self { dir }
    }

    /// An engine that has `alpine:latest` (busybox with its applets), loaded from an archive:
    /// its layer is of the form that pulled layers have, not a build step's directory.
    pub(crate) fn with_alpine() -> Self {
        static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
        let archive = ARCHIVE.get_or_init(|| {
            let engine = Self::new();
            let context = engine.path("alpine");
            fs::create_dir_all(&context).unwrap();
            fs::write(context.join("rootfs.tar"), busybox_tar()).unwrap();
            fs::write(
                context.join("Dockerfile"),
                "FROM scratch\nADD rootfs.tar /\nENV PATH=/bin:/usr/bin\nCMD [\"/bin/sh\"]\n",
            )
            .unwrap();
            engine.ok(["build", "-q", "-t", "alpine", context.to_str().unwrap()]);
            let saved = engine.command(["save", "alpine"]).output().unwrap();
            assert!(saved.status.success(), "{saved:?}");
            saved.stdout
        });
        let engine = Self::new();
        let loaded = engine.run_with_input(["load", "-q"], archive);
        assert_eq!(loaded.code, 0, "{loaded:?}");
        engine
    }

    /// A file of this test, outside the engine's root.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// The command line of this engine.
    pub(crate) fn command<I, S>(&self, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.program(binary());
        command.args(args);
        command
    }

    /// A program that calls the command line of this engine.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("CORTEN_ROOT", self.root())
            .env("DOCKER_CONFIG", self.path("docker"))
            .env_remove("DOCKER_HOST")
            .env_remove("DOCKER_CONTEXT")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end, whatever comes of it.
    pub(crate) fn run<I, S>(&self, args: I) -> Done
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.command(args).output().unwrap().into()
    }

    /// Runs and must succeed; its standard output without the last newline.
    #[track_caller]
    pub(crate) fn ok<I, S>(&self, args: I) -> String
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let args: Vec<_> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let done = self.run(&args);
        assert_eq!(done.code, 0, "corten {args:?} failed: {done:?}");
        done.stdout.trim_end_matches('\n').to_owned()
    }

    /// What `inspect` tells of a container, in words of a template.
    #[track_caller]
    pub(crate) fn told(&self, format: &str, container: &str) -> String {
        self.ok(["inspect", "-f", format, container])
    }

    /// Runs and must fail with this code; its standard error.
    #[track_caller]
    pub(crate) fn fails<I, S>(&self, code: i32, args: I) -> String
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let args: Vec<_> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let done = self.run(&args);
        assert_eq!(done.code, code, "corten {args:?}: {done:?}");
        done.stderr
    }

    /// Feeds standard input.
    pub(crate) fn run_with_input<const N: usize>(&self, args: [&str; N], input: &[u8]) -> Done {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who refuses what it is asked may have ended before it could read.
        if let Err(error) = child.stdin.take().unwrap().write_all(input) {
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{error}");
        }
        child.wait_with_output().unwrap().into()
    }

    /// Starts in the background.
    pub(crate) fn spawn<I, S>(&self, args: I) -> Background
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.spawn_with_input(args, Stdio::null())
    }

    /// The same, with this as its standard input.
    pub(crate) fn spawn_with_input<I, S>(&self, args: I, input: Stdio) -> Background
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let child = self
            .command(args)
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Background(child)
    }

    /// Writes a build context and builds it.
    pub(crate) fn build(&self, tag: &str, files: &[(&str, &str)]) -> Done {
        let context = self.context(tag, files);
        self.run([
            "build",
            "--progress",
            "plain",
            "-t",
            tag,
            context.to_str().unwrap(),
        ])
    }

    /// Writes files under a directory named `name`.
    pub(crate) fn context(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let context = self.path(&format!("context-{}", name.replace(['/', ':'], "-")));
        for (file, content) in files {
            let file = context.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        context
    }

    /// Starts `corten serve` on a socket of this test.
    pub(crate) fn serve(&self) -> (Background, String) {
        let socket = self.path("api.sock");
        let host = format!("unix://{}", socket.display());
        let server = self.spawn(["serve", "-H", &host]);
        until("the API answers", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        (server, host)
    }

    /// Starts `corten registry serve`; its address `127.0.0.1:PORT`.
    pub(crate) fn registry(&self, name: &str, extra: &[&str]) -> (Background, String) {
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let storage = self.path(name);
        let mut args = vec![
            "registry".to_owned(),
            "serve".to_owned(),
            "--listen".to_owned(),
            address.clone(),
            "--root".to_owned(),
            storage.display().to_string(),
        ];
        args.extend(extra.iter().map(|a| (*a).to_owned()));
        let server = self.spawn(args);
        until("the registry listens", || {
            TcpStream::connect(&address).is_ok()
        });
        (server, address)
    }

    /// Asserts that `system check` finds nothing after its sweep.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        self.run(["system", "check", "--repair"]);
        let done = self.run(["system", "check"]);
        assert_eq!(done.code, 0, "system check after its sweep: {done:?}");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if !self.root().exists() {
            return;
        }
        let done = self.run(["system", "reset", "--force"]);
        if done.code != 0 && !std::thread::panicking() {
            panic!("the engine of this test could not be removed: {done:?}");
        }
    }
}

/// A process that is killed (by pid) when dropped.
pub(crate) struct Background(pub(crate) Child);

impl Background {
    /// One that was started by the test itself.
    pub(crate) fn of(child: Child) -> Self {
        Self(child)
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill_9(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for the end of one whose output goes elsewhere; its exit code.
    pub(crate) fn code(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// `kill -9`; what it had said until then.
    pub(crate) fn killed(mut self) -> Done {
        self.0.kill().unwrap();
        self.finish()
    }

    /// Waits for the end.
    pub(crate) fn finish(mut self) -> Done {
        use std::io::Read;
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let mut out = self.0.stdout.take().unwrap();
        let mut err = self.0.stderr.take().unwrap();
        let errors = std::thread::spawn(move || {
            err.read_to_string(&mut stderr).unwrap();
            stderr
        });
        out.read_to_string(&mut stdout).unwrap();
        let status = self.0.wait().unwrap();
        Output {
            status,
            stdout: stdout.into_bytes(),
            stderr: errors.join().unwrap().into_bytes(),
        }
        .into()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }
}

/// A terminal.
pub(crate) struct Terminal {
    /// Who reads it sees the screen, who writes to it types.
    pub(crate) ours: fs::File,
    /// A program's streams.
    pub(crate) theirs: fs::File,
}

impl Terminal {
    pub(crate) fn open() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&ours).unwrap();
        rustix::pty::unlockpt(&ours).unwrap();
        let name = rustix::pty::ptsname(&ours, Vec::new()).unwrap();
        let theirs = fs::File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        Self {
            ours: ours.into(),
            theirs,
        }
    }
}

/// Polls until true; fails the test after [`PATIENCE`].
#[track_caller]
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(PATIENCE, condition), "not in time: {what}");
}

/// Polls until true, at most so long; whether it became true.
pub(crate) fn within(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// The first three numbers of a /24 that nothing here routes; no two calls give the same.
pub(crate) fn free_net() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Other programs of tests begin elsewhere.
        let n = std::process::id().wrapping_mul(37) + NEXT.fetch_add(1, Ordering::Relaxed);
        let net = format!("10.{}.{}", 192 + n / 256 % 64, n % 256);
        let routes = Command::new("ip").args(["-4", "route"]).output().unwrap();
        if !String::from_utf8_lossy(&routes.stdout).contains(&format!("{net}.")) {
            return net;
        }
    }
}

/// A port nobody listens on (on any address) at this moment.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("0.0.0.0:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// The same, of those that the kernel gives to nobody who does not name them: it stays free while
/// nobody listens on it. No two calls give the same.
pub(crate) fn quiet_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let given: u32 = range.split_whitespace().next().unwrap().parse().unwrap();
    assert!(given > FIRST, "the kernel gives away ports from {given} on");
    loop {
        // Other programs of tests begin elsewhere.
        let n = std::process::id().wrapping_mul(37) + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(FIRST + n % (given - FIRST)).unwrap();
        if std::net::TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

/// Serves the files of a directory, and counts nothing, until the test's process ends.
pub(crate) fn serve_files(root: PathBuf) -> String {
    serve_files_to(root, "")
}

/// The same, to those whose requests have a certain line.
pub(crate) fn serve_files_to(root: PathBuf, line: &'static str) -> String {
    use std::io::{BufRead as _, BufReader, Read as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut request = String::new();
            reader.read_line(&mut request).unwrap();
            let mut welcome = line.is_empty();
            loop {
                let mut told = String::new();
                if reader.read_line(&mut told).unwrap() == 0 || told == "\r\n" {
                    break;
                }
                welcome |= told.trim_end().eq_ignore_ascii_case(line);
            }
            let name = request.split(' ').nth(1).unwrap_or("/");
            let name = name.split('?').next().unwrap().trim_start_matches('/');
            let mut body = Vec::new();
            let found = fs::File::open(root.join(name)).and_then(|mut f| f.read_to_end(&mut body));
            let status = if !welcome {
                body.clear();
                "401 Unauthorized"
            } else if found.is_ok() {
                "200 OK"
            } else {
                "404 Not Found"
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\
                 Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n",
                body.len()
            );
            // A client that has gone has what it wanted.
            let _sent = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(&body));
        }
    });
    format!("http://{address}")
}

/// A GET of `/` over plain HTTP/1.0; the body, or `None` when nobody answers.
pub(crate) fn http_get(address: &str) -> Option<String> {
    http_path(address, "/")
}

/// The same of another path.
pub(crate) fn http_path(address: &str, path: &str) -> Option<String> {
    use std::io::Read;
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .filter(|b| !b.is_empty())
}

/// Runs the real `docker` command line against a server of ours; `None` where it is not
/// installed.
pub(crate) fn docker(engine: &Engine, host: &str, args: &[&str]) -> Option<Done> {
    let output = Command::new("docker")
        .args(args)
        .env("DOCKER_HOST", host)
        .env("DOCKER_CONFIG", engine.path("docker"))
        .env("DOCKER_BUILDKIT", "0")
        .env_remove("DOCKER_CONTEXT")
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) => Some(output.into()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("the docker command line is not installed: this test saw nothing");
            None
        }
        Err(error) => panic!("docker: {error}"),
    }
}

/// A script that can be executed at once. A child writes it: what this process has open for
/// writing, the children that other tests are just starting have, too (ETXTBSY).
pub(crate) fn script(path: &Path, text: &str) {
    let write = "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\"";
    let mut writer = Command::new("sh");
    writer.args(["-c", write]).arg(path).arg(text);
    assert!(writer.status().unwrap().success());
}

/// A root file system of busybox and links to it, as a tar.
pub(crate) fn busybox_tar() -> &'static [u8] {
    static TAR: OnceLock<Vec<u8>> = OnceLock::new();
    TAR.get_or_init(|| {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .iter()
            .find_map(|path| fs::read(path).ok())
            .expect("busybox-static is installed by scripts/install-deps.sh test");
        let mut tar = tar::Builder::new(Vec::new());
        let header = |kind: tar::EntryType, mode: u32, size: u64| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(size);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header
        };
        for (dir, mode) in [
            ("bin/", 0o755),
            ("etc/", 0o755),
            ("root/", 0o700),
            ("tmp/", 0o1777),
            ("usr/bin/", 0o755),
        ] {
            let mut header = header(tar::EntryType::Directory, mode, 0);
            tar.append_data(&mut header, dir, std::io::empty()).unwrap();
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
        let group = "root:x:0:\nnogroup:x:65534:\n";
        for (file, content) in [("etc/passwd", passwd), ("etc/group", group)] {
            let mut header = header(tar::EntryType::Regular, 0o644, content.len() as u64);
            tar.append_data(&mut header, file, content.as_bytes())
                .unwrap();
        }
        let mut binary = header(tar::EntryType::Regular, 0o755, busybox.len() as u64);
        tar.append_data(&mut binary, "bin/busybox", busybox.as_slice())
            .unwrap();
        for applet in [
            "sh",
            "ls",
            "cat",
            "echo",
            "true",
            "false",
            "sleep",
            "id",
            "hostname",
            "ps",
            "env",
            "mkdir",
            "touch",
            "rm",
            "cp",
            "mv",
            "ln",
            "chmod",
            "chown",
            "stat",
            "mount",
            "umount",
            "wget",
            "nc",
            "ip",
            "kill",
            "trap",
            "seq",
            "head",
            "tail",
            "wc",
            "grep",
            "sed",
            "dd",
            "test",
            "[",
            "pwd",
            "readlink",
            "md5sum",
            "sha256sum",
            "httpd",
            "yes",
            "tty",
            "stty",
            "mknod",
            "df",
            "date",
            "expr",
            "unshare",
            "chroot",
            "sync",
            "find",
            "ping",
            "nslookup",
        ] {
            let mut link = header(tar::EntryType::Symlink, 0o777, 0);
            tar.append_link(&mut link, format!("bin/{applet}"), "/bin/busybox")
                .unwrap();
        }
        tar.into_inner().unwrap()
    })
}
