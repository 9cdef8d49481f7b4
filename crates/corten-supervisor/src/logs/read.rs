//! Reading logs: the last lines, a span of time, and following. Blocking; asynchronous
//! callers read on a thread of their own.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;

use super::write::numbered;
use super::{Line, Stream};

/// How often a follower looks whether the container still lives when nothing is written.
const ALIVE_CHECK: Duration = Duration::from_millis(250);

/// One piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When.
    pub time: Timestamp,
    /// From which stream.
    pub stream: Stream,
    /// The text, with its newline if it ended with one.
    pub text: Vec<u8>,
}

/// What to read.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions {
    /// Only so many of the last records.
    pub tail: Option<u64>,
    /// Nothing before.
    pub since: Option<Timestamp>,
    /// Nothing after.
    pub until: Option<Timestamp>,
    /// Go on with what is written later, until the container ends.
    pub follow: bool,
}

/// Reads a log and its rotated files in order.
pub struct LogReader {
    path: PathBuf,
    options: ReadOptions,
    /// Files still to be read, oldest first.
    files: VecDeque<BufReader<File>>,
    /// Records the tail has kept.
    kept: VecDeque<Record>,
    line: String,
    alive: Box<dyn Fn() -> bool + Send>,
    watch: Option<std::os::fd::OwnedFd>,
    ended: bool,
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogReader")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl LogReader {
    /// Opens a log; a file that does not exist is an empty log. `alive` tells a follower
    /// whether more may come.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub fn open(
        path: &Path,
        options: ReadOptions,
        alive: Box<dyn Fn() -> bool + Send>,
    ) -> io::Result<Self> {
        let mut reader = Self {
            path: path.into(),
            options,
            files: VecDeque::new(),
            kept: VecDeque::new(),
            line: String::new(),
            alive,
            watch: if options.follow { watch(path)? } else { None },
            ended: false,
        };
        reader.files = open_all(path)?;
        if let Some(tail) = options.tail {
            while let Some(record) = reader.written()? {
                reader.kept.push_back(record);
                if reader.kept.len() as u64 > tail {
                    reader.kept.pop_front();
                }
            }
        }
        Ok(reader)
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// A file cannot be read.
    #[allow(
        clippy::should_implement_trait,
        reason = "a fallible, blocking iterator"
    )]
    pub fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            if let Some(record) = self.kept.pop_front() {
                return Ok(Some(record));
            }
            if let Some(record) = self.written()? {
                return Ok(Some(record));
            }
            if !self.options.follow || self.ended {
                return Ok(None);
            }
            // Looked at before the last read: what was written before the end is not missed.
            let alive = (self.alive)();
            if let Some(record) = self.written()? {
                return Ok(Some(record));
            }
            if !alive {
                // The file may have been made, or rotated, since it was last looked for.
                self.reopen()?;
                self.ended = true;
                continue;
            }
            self.wait()?;
            self.reopen()?;
        }
    }

    /// The next record that is written already and wanted.
    fn written(&mut self) -> io::Result<Option<Record>> {
        while let Some(file) = self.files.front_mut() {
            // A line that is only half written is left for the next time.
            let had = self.line.len();
            let n = file.read_line(&mut self.line)?;
            if n == 0 || !self.line.ends_with('\n') {
                if self.files.len() > 1 {
                    self.files.pop_front();
                    self.line.clear();
                    continue;
                }
                if n == 0 && had == 0 {
                    self.line.clear();
                }
                return Ok(None);
            }
            let parsed = parse(&self.line);
            self.line.clear();
            // A line that is no record (a torn write before a power cut) is passed over.
            let Some(record) = parsed else { continue };
            if self.options.since.is_some_and(|since| record.time < since) {
                continue;
            }
            if self.options.until.is_some_and(|until| record.time > until) {
                self.ended = true;
                self.files.clear();
                return Ok(None);
            }
            return Ok(Some(record));
        }
        Ok(None)
    }

    /// After a rotation, or a first write: the file of that name is another one.
    fn reopen(&mut self) -> io::Result<()> {
        let named = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let same = match self.files.back() {
            None => false,
            Some(open) => open.get_ref().metadata()?.ino() == named.metadata()?.ino(),
        };
        if !same {
            self.files.push_back(BufReader::new(named));
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        let Some(watch) = &self.watch else {
            std::thread::sleep(ALIVE_CHECK);
            return Ok(());
        };
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(ALIVE_CHECK.subsec_nanos()),
        };
        let mut fds = [PollFd::new(watch, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
            Ok(_) => {
                let mut events = [0; 4096];
                match rustix::io::read(watch, &mut events) {
                    Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn watch(path: &Path) -> io::Result<Option<std::os::fd::OwnedFd>> {
    let Some(directory) = path.parent() else {
        return Ok(None);
    };
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let fd = inotify::init(flags)?;
    let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
    match inotify::add_watch(&fd, directory, events) {
        Ok(_) => Ok(Some(fd)),
        // Out of watches: polled instead.
        Err(rustix::io::Errno::NOSPC) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn open_all(path: &Path) -> io::Result<VecDeque<BufReader<File>>> {
    let mut files = VecDeque::new();
    // The current file first: if it is rotated meanwhile it is met again, and passed over.
    let current = match File::open(path) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let inode = current
        .as_ref()
        .map(File::metadata)
        .transpose()?
        .map(|m| m.ino());
    for number in 1.. {
        match File::open(numbered(path, number)) {
            Ok(file) if Some(file.metadata()?.ino()) == inode => {}
            Ok(file) => files.push_front(BufReader::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    files.extend(current.map(BufReader::new));
    Ok(files)
}

fn parse(line: &str) -> Option<Record> {
    let line: Line<'_> = serde_json::from_str(line).ok()?;
    Some(Record {
        time: line.time.parse().ok()?,
        stream: line.stream,
        text: line.log.into_owned().into_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::LogWriter;

    #[test]
    fn tail_since_until() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut text = String::new();
        for n in 0..5 {
            text.push_str(&format!(
                "{{\"log\":\"{n}\\n\",\"stream\":\"stdout\",\"time\":\"2024-01-01T00:00:0{n}Z\"}}\n"
            ));
        }
        text.push_str("torn {\n");
        std::fs::write(&path, text).unwrap();
        let at = |s: &str| Some(format!("2024-01-01T00:00:0{s}Z").parse().unwrap());
        for (options, expected) in [
            (ReadOptions::default(), "01234"),
            (
                ReadOptions {
                    tail: Some(2),
                    ..Default::default()
                },
                "34",
            ),
            (
                ReadOptions {
                    tail: Some(0),
                    ..Default::default()
                },
                "",
            ),
            (
                ReadOptions {
                    since: at("3"),
                    ..Default::default()
                },
                "34",
            ),
            (
                ReadOptions {
                    until: at("1"),
                    ..Default::default()
                },
                "01",
            ),
            (
                ReadOptions {
                    since: at("1"),
                    until: at("3"),
                    tail: Some(1),
                    ..Default::default()
                },
                "3",
            ),
        ] {
            let mut reader = LogReader::open(&path, options, Box::new(|| false)).unwrap();
            let mut found = String::new();
            while let Some(record) = reader.next().unwrap() {
                found.push_str(std::str::from_utf8(&record.text).unwrap().trim_end());
            }
            assert_eq!(found, expected, "{options:?}");
        }
    }

    #[test]
    fn follows_across_rotation_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let alive = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let options = ReadOptions {
            follow: true,
            ..Default::default()
        };
        let still = alive.clone();
        let mut reader = LogReader::open(
            &path,
            options,
            Box::new(move || still.load(std::sync::atomic::Ordering::SeqCst)),
        )
        .unwrap();
        let writer = std::thread::spawn(move || {
            let mut log = LogWriter::open(&path, Some(400), 100).unwrap();
            for n in 0..50 {
                log.write(Stream::Stdout, format!("{n}\n").as_bytes())
                    .unwrap();
            }
            alive.store(false, std::sync::atomic::Ordering::SeqCst);
        });
        let mut last = 0;
        while let Some(record) = reader.next().unwrap() {
            last = std::str::from_utf8(&record.text)
                .unwrap()
                .trim()
                .parse()
                .unwrap();
        }
        writer.join().unwrap();
        assert_eq!(last, 49);
    }
}
