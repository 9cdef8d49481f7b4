//! Writing and rotating logs.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::task::JoinHandle;

use super::compress::{self, compressed};
use super::config::{LogConfig, LogFile};
use super::remote::{Closing, Pressure, Sender};
use super::{Line, MAX_LINE, Stream};
use crate::look_up::Addresses;

/// This moment, RFC 3339 with nanoseconds, in UTC.
pub(crate) fn now() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

/// Divides output into lines for the file and the remote log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    file: Option<Appender>,
    remote: Option<Sender>,
    /// Unfinished last lines of both streams.
    partial: [Vec<u8>; 2],
}

/// What a log's writer has not done yet.
pub(crate) struct Rest {
    compressing: Option<JoinHandle<()>>,
    remote: Option<Closing>,
}

impl Rest {
    /// Waits until it is done.
    pub(crate) async fn done(self) {
        if let Some(remote) = self.remote {
            remote.sent().await;
        }
        // There may be no next rotation to compress what this leaves.
        if let Some(compressing) = self.compressing
            && let Err(error) = compressing.await
        {
            tracing::warn!(%error, "rotated logs stay uncompressed");
        }
    }
}

/// Appends records; one system call per chunk of output.
#[derive(Debug)]
struct Appender {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: Option<u64>,
    /// The size at which the file is rotated: `max_size`, or more after that has failed.
    full: u64,
    max_file: u32,
    compress: bool,
    compressing: Option<JoinHandle<()>>,
    attributes: BTreeMap<String, String>,
    out: Vec<u8>,
}

impl LogWriter {
    /// A log file that cannot be opened does not keep the container from running; a log of
    /// others that cannot be reached does, as with Docker. `None`: nothing is logged.
    pub(crate) async fn connect(
        config: &LogConfig,
        known: &Rc<Addresses>,
    ) -> io::Result<Option<Self>> {
        let remote = match &config.remote {
            Some(remote) => Some(Sender::open(remote, known).await?),
            None => None,
        };
        Ok(Self::open(config.file.as_ref(), remote))
    }

    pub(super) fn open(file: Option<&LogFile>, remote: Option<Sender>) -> Option<Self> {
        let file = file.and_then(|file| {
            Appender::open(file)
                .inspect_err(|error| {
                    tracing::warn!(path = %file.path.display(), %error, "output is not logged");
                })
                .ok()
        });
        (file.is_some() || remote.is_some()).then(|| Self {
            file,
            remote,
            partial: [Vec::new(), Vec::new()],
        })
    }

    /// Something to wait for before more is written.
    pub(crate) fn pressure(&self) -> Option<Pressure> {
        self.remote.as_ref()?.pressure()
    }

    /// The last output comes: nothing is to be waited for before it is written.
    pub(crate) fn ending(&self) {
        if let Some(remote) = &self.remote {
            remote.ending();
        }
    }

    /// After [`Self::finish`]: what has to be waited for.
    pub(crate) fn close(mut self) -> Rest {
        Rest {
            compressing: self.file.as_mut().and_then(|file| file.compressing.take()),
            remote: self.remote.map(Sender::close),
        }
    }

    /// Logs output; a line that has not ended yet waits for its end.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut partial = std::mem::take(&mut self.partial[stream as usize]);
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = MAX_LINE - partial.len();
            let window = &rest[..rest.len().min(room)];
            match window.iter().position(|b| *b == b'\n') {
                Some(end) => {
                    partial.extend_from_slice(&window[..=end]);
                    rest = &rest[end + 1..];
                }
                None => {
                    partial.extend_from_slice(window);
                    rest = &rest[window.len()..];
                    if partial.len() < MAX_LINE {
                        break;
                    }
                }
            }
            // Each line has its own time, so that a span of time can end between two.
            self.record(stream, &partial, &now())?;
            partial.clear();
        }
        self.partial[stream as usize] = partial;
        self.file.as_mut().map_or(Ok(()), Appender::flush)
    }

    /// Logs what has no newline at its end: the stream is over.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let partial = std::mem::take(&mut self.partial[stream as usize]);
            if !partial.is_empty() {
                self.record(stream, &partial, &now())?;
            }
        }
        self.file.as_mut().map_or(Ok(()), Appender::flush)
    }

    fn record(&mut self, stream: Stream, text: &[u8], time: &str) -> io::Result<()> {
        if let Some(remote) = &self.remote {
            remote.queue(stream, text);
        }
        match &mut self.file {
            Some(file) => file.record(stream, text, time),
            None => Ok(()),
        }
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        // What is not compressed yet is when the next file is rotated.
        if let Some(compressing) = self.compressing.take() {
            compressing.abort();
        }
    }
}

impl Appender {
    fn open(config: &LogFile) -> io::Result<Self> {
        if let Some(directory) = config.path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o710)
                .create(directory)?;
        }
        let file = open(&config.path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: config.path.clone(),
            file,
            size,
            max_size: config.max_size,
            full: config.max_size.unwrap_or(u64::MAX),
            max_file: config.max_file.max(1),
            compress: config.compress,
            compressing: None,
            attributes: config.attributes.iter().cloned().collect(),
            out: Vec::new(),
        })
    }

    fn record(&mut self, stream: Stream, text: &[u8], time: &str) -> io::Result<()> {
        let line = Line {
            log: String::from_utf8_lossy(text),
            stream,
            attrs: self.attributes.clone(),
            time: time.into(),
        };
        let start = self.out.len();
        serde_json::to_writer(&mut self.out, &line)?;
        self.out.push(b'\n');
        if let Some(max) = self.max_size
            && self.size + self.out.len() as u64 > self.full
            && self.size + start as u64 > 0
        {
            let next = self.out.split_off(start);
            let flushed = self.flush();
            self.out = next;
            flushed?;
            // The file grows rather than lose anything, and not each record tries again.
            self.full = match self.rotate() {
                Ok(()) => max,
                Err(error) => {
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "the log is not rotated, and grows");
                    self.size.saturating_add(max)
                }
            };
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.out);
        self.size += self.out.len() as u64;
        self.out.clear();
        // A burst must not keep its memory for ever.
        self.out.shrink_to(MAX_LINE);
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        if let Some(compressing) = self.compressing.take() {
            compressing.abort(); // names change under it
        }
        // Made before anything is renamed or removed: it may be what fails.
        let next = self.path.with_added_extension("next");
        let file = open(&next)?;
        if let Err(error) = self.shift().and_then(|()| fs::rename(&next, &self.path)) {
            missing_is_fine(fs::remove_file(next))?;
            return Err(error);
        }
        self.file = file;
        self.size = 0;
        // Outside an event loop there is nobody to do it.
        if self.compress && tokio::runtime::Handle::try_current().is_ok() {
            let work = compress::rotated(self.path.clone(), self.max_file);
            self.compressing = Some(tokio::task::spawn_local(work));
        }
        Ok(())
    }

    /// Makes each file the next older one.
    fn shift(&self) -> io::Result<()> {
        for number in (1..self.max_file).rev() {
            // Whichever form the last one had goes with it.
            for stale in [numbered(&self.path, number), compressed(&self.path, number)] {
                missing_is_fine(fs::remove_file(stale))?;
            }
            if number > 1 {
                let (from, to) = (number - 1, number);
                let from_compressed = compressed(&self.path, from);
                missing_is_fine(fs::rename(from_compressed, compressed(&self.path, to)))?;
            }
            let from = if number == 1 {
                self.path.clone()
            } else {
                numbered(&self.path, number - 1)
            };
            missing_is_fine(fs::rename(&from, numbered(&self.path, number)))?;
        }
        Ok(())
    }
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::{LogReader, ReadOptions};

    fn log(path: &Path, max_size: Option<u64>, max_file: u32) -> LogFile {
        LogFile {
            path: path.into(),
            max_size,
            max_file,
            compress: false,
            attributes: Vec::new(),
        }
    }

    fn writer(file: LogFile) -> LogWriter {
        LogWriter::open(Some(&file), None).unwrap()
    }

    fn read(path: &Path) -> Vec<String> {
        let mut reader = LogReader::open(path, ReadOptions::default(), Box::new(|| false)).unwrap();
        let mut found = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            found.push(format!(
                "{:?} {:?}",
                record.stream,
                String::from_utf8_lossy(&record.text)
            ));
        }
        found
    }

    #[test]
    fn lines_wait_for_their_end_and_long_ones_are_split() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = writer(log(&path, None, 1));
        log.write(Stream::Stdout, b"one\ntw").unwrap();
        log.write(Stream::Stderr, b"err\n").unwrap();
        assert_eq!(read(&path), ["Stdout \"one\\n\"", "Stderr \"err\\n\""]);
        log.write(Stream::Stdout, b"o\nlast").unwrap();
        log.finish().unwrap();
        assert_eq!(read(&path)[2..], ["Stdout \"two\\n\"", "Stdout \"last\""]);
        log.write(Stream::Stdout, &vec![b'x'; MAX_LINE + 5])
            .unwrap();
        log.write(Stream::Stdout, b"\n").unwrap();
        let lengths: Vec<usize> = read(&path)[4..].iter().map(String::len).collect();
        assert_eq!(lengths[0] - lengths[1], MAX_LINE - 7);
    }

    #[test]
    fn rotation_keeps_so_many_files_and_reads_across_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = writer(log(&path, Some(300), 3));
        for n in 0..20 {
            log.write(Stream::Stdout, format!("line {n}\n").as_bytes())
                .unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        let lines = read(&path);
        assert_eq!(lines.last().unwrap(), "Stdout \"line 19\\n\"");
        assert!(lines.len() > 6, "older files are read too: {lines:?}");
    }

    /// Nothing is lost, and no older file goes for nothing.
    #[test]
    fn a_log_that_cannot_be_rotated_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let obstacle = dir.path().join("log.next");
        let mut log = writer(log(&path, Some(300), 3));
        let mut write = |from: u32, to: u32| {
            for n in from..to {
                log.write(Stream::Stdout, format!("line {n}\n").as_bytes())
                    .unwrap();
            }
        };
        let lines = |from: u32, to: u32| -> Vec<String> {
            (from..to)
                .map(|n| format!("Stdout \"line {n}\\n\""))
                .collect()
        };
        write(0, 6);
        let older = fs::read(dir.path().join("log.1")).unwrap();
        fs::create_dir(&obstacle).unwrap();
        write(6, 20);
        assert_eq!(fs::read(dir.path().join("log.1")).unwrap(), older);
        assert_eq!(read(&path), lines(0, 20));
        fs::remove_dir(&obstacle).unwrap();
        write(20, 40);
        assert!(fs::metadata(&path).unwrap().len() <= 300);
        let kept = read(&path);
        let first = 40 - u32::try_from(kept.len()).unwrap();
        assert_eq!(kept, lines(first, 40));
        assert!(!obstacle.exists());
    }

    #[test]
    fn attributes_are_part_of_every_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = writer(LogFile {
            attributes: vec![("tag".to_owned(), "web".to_owned())],
            ..log(&path, None, 1)
        });
        log.write(Stream::Stdout, b"one\n").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with(r#"{"log":"one\n","stream":"stdout","attrs":{"tag":"web"},"time":""#),
            "{text}"
        );
    }

    /// Rotated files are compressed between other work, are read like others, and end as
    /// others do.
    #[tokio::test]
    async fn rotated_files_are_compressed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = log(&path, Some(300), 3);
        file.compress = true;
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let mut log = writer(file);
                for n in 0..40 {
                    log.write(Stream::Stdout, format!("line {n}\n").as_bytes())
                        .unwrap();
                    // Some rotations find the last one compressed, some, as the last of all, do not.
                    if n % 3 == 0 && n < 30 {
                        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                    }
                }
                log.finish().unwrap();
                log.close().done().await;
            })
            .await;
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1.gz", "log.2.gz"]);
        let lines = read(&path);
        assert_eq!(lines.last().unwrap(), "Stdout \"line 39\\n\"");
        let first: u32 = lines[0]
            .trim_start_matches("Stdout \"line ")
            .trim_end_matches("\\n\"")
            .parse()
            .unwrap();
        let expected: Vec<String> = (first..40)
            .map(|n| format!("Stdout \"line {n}\\n\""))
            .collect();
        assert_eq!(lines, expected);
        assert!(lines.len() > 6, "{lines:?}");
    }
}
