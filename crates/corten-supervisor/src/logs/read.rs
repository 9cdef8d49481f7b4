//! Reading logs: the last lines, a span of time, and following. Blocking; asynchronous
//! callers read on a thread of their own.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;

use super::compress::compressed;
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
    /// What the log's options have written with every record.
    pub attributes: BTreeMap<String, String>,
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
    files: VecDeque<Opened>,
    /// Records the tail has kept.
    kept: VecDeque<Record>,
    line: String,
    /// When the last record read was written, wanted or not.
    last: Option<Timestamp>,
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
            last: None,
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
            let n = match file.lines.read_line(&mut self.line) {
                Err(error) if file.is_compressed() && is_damage(&error) => {
                    tracing::warn!(log = %self.path.display(), %error, "a compressed log is damaged");
                    self.line.clear();
                    0
                }
                read => read?,
            };
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
            self.last = Some(record.time);
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
        let mut named = Opened::plain(named)?;
        let open = self.files.back().and_then(|file| file.inode);
        if open.is_some() && open == named.inode {
            return Ok(());
        }
        // Several rotations may have passed since: what came in between is not left out.
        let mut between = VecDeque::new();
        let mut seen = vec![named.begin()?];
        for number in 1.. {
            let Some(mut file) = rotated(&self.path, number)? else {
                break;
            };
            let begin = file.begin()?;
            let read = begin.is_some() && self.last.is_some_and(|last| begin <= Some(last));
            if read || (open.is_some() && file.inode == open) {
                break;
            }
            // Rotated once more, and perhaps compressed, since it was opened.
            if file.inode == named.inode || (begin.is_some() && seen.contains(&begin)) {
                continue;
            }
            seen.push(begin);
            between.push_front(file);
        }
        self.files.extend(between);
        self.files.push_back(named);
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
    let events =
        inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    match inotify::add_watch(&fd, directory, events) {
        Ok(_) => Ok(Some(fd)),
        // Out of watches: polled instead.
        Err(rustix::io::Errno::NOSPC) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A file of the log, being read.
struct Opened {
    lines: Box<dyn BufRead + Send>,
    /// `None` for a compressed one.
    inode: Option<u64>,
}

/// Whether compressed data is not what it should be.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

impl Opened {
    fn is_compressed(&self) -> bool {
        self.inode.is_none()
    }

    fn plain(file: File) -> io::Result<Self> {
        Ok(Self {
            inode: Some(file.metadata()?.ino()),
            lines: Box::new(BufReader::new(file)),
        })
    }

    /// When its first record was written, by which a file is known whatever it is called.
    fn begin(&mut self) -> io::Result<Option<Timestamp>> {
        let mut first = String::new();
        match self.lines.read_line(&mut first) {
            // Told of when it is read.
            Err(error) if self.is_compressed() && is_damage(&error) => return Ok(None),
            read => read?,
        };
        let begin = parse(&first).map(|record| record.time);
        let rest = std::mem::replace(&mut self.lines, Box::new(io::empty()));
        self.lines = Box::new(BufReader::new(io::Cursor::new(first).chain(rest)));
        Ok(begin)
    }
}

/// A rotated file, whichever form it has; `None` when there are not so many.
fn rotated(path: &Path, number: u32) -> io::Result<Option<Opened>> {
    // It may be compressed, or moved on, between the two looks.
    for _ in 0..2 {
        match File::open(numbered(path, number)) {
            Ok(file) => return Opened::plain(file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match File::open(compressed(path, number)) {
            Ok(file) => {
                let lines = BufReader::new(MultiGzDecoder::new(BufReader::new(file)));
                return Ok(Some(Opened {
                    lines: Box::new(lines),
                    inode: None,
                }));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn open_all(path: &Path) -> io::Result<VecDeque<Opened>> {
    let mut files = VecDeque::new();
    // The current file first: if it is rotated meanwhile it is met again, and passed over.
    let mut current = match File::open(path) {
        Ok(file) => Some(Opened::plain(file)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let inode = current.as_ref().and_then(|file| file.inode);
    let mut seen = match &mut current {
        Some(current) => vec![current.begin()?],
        None => Vec::new(),
    };
    for number in 1.. {
        let Some(mut file) = rotated(path, number)? else {
            break;
        };
        let begin = file.begin()?;
        let again = begin.is_some() && seen.contains(&begin);
        if again || (file.inode.is_some() && file.inode == inode) {
            continue;
        }
        seen.push(begin);
        files.push_front(file);
    }
    files.extend(current);
    Ok(files)
}

fn parse(line: &str) -> Option<Record> {
    let line: Line<'_> = serde_json::from_str(line).ok()?;
    Some(Record {
        time: line.time.parse().ok()?,
        stream: line.stream,
        text: line.log.into_owned().into_bytes(),
        attributes: line.attrs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::{LogFile, LogWriter};

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

    /// As after a power cut: what can be read is.
    #[test]
    fn damaged_compressed_logs_are_passed_over() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let record = |n: u32| {
            format!(
                "{{\"log\":\"{n}\\n\",\"stream\":\"stdout\",\"time\":\"2024-01-01T00:00:0{n}Z\"}}\n"
            )
        };
        std::fs::write(&path, record(9)).unwrap();
        let gzip = |text: &[u8]| {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        let whole = gzip((record(5) + &record(6)).as_bytes());
        std::fs::write(compressed(&path, 1), b"").unwrap();
        std::fs::write(compressed(&path, 2), &whole).unwrap();
        std::fs::write(compressed(&path, 3), &whole[..whole.len() - 20]).unwrap();
        std::fs::write(compressed(&path, 4), b"not compressed").unwrap();
        let short = gzip((record(3) + &record(4)).as_bytes());
        std::fs::write(compressed(&path, 5), &short[..short.len() - 20]).unwrap();
        let mut reader =
            LogReader::open(&path, ReadOptions::default(), Box::new(|| false)).unwrap();
        let mut found = String::new();
        while let Some(record) = reader.next().unwrap() {
            found.push_str(std::str::from_utf8(&record.text).unwrap().trim_end());
        }
        assert_eq!(found, "3569");
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
            let file = LogFile {
                path,
                max_size: Some(400),
                max_file: 100,
                compress: false,
                attributes: Vec::new(),
            };
            let mut log = LogWriter::open(Some(&file), None).unwrap();
            for n in 0..50 {
                log.write(Stream::Stdout, format!("{n}\n").as_bytes())
                    .unwrap();
            }
            alive.store(false, std::sync::atomic::Ordering::SeqCst);
        });
        let mut found: Vec<u32> = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            let text = std::str::from_utf8(&record.text).unwrap();
            found.push(text.trim().parse().unwrap());
        }
        writer.join().unwrap();
        assert_eq!(found, (0..50).collect::<Vec<_>>());
    }
}
