//! Builds that have been: one file each, with what was asked for, every event as it came, and how
//! it ended.
//!
//! A file is locked for as long as its build runs, so one that is not locked and tells of no end is
//! of a builder that died. What cannot be recorded never fails a build.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read as _, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use corten_oci::Digest;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::cache::now;
use crate::error::BuildError;
use crate::progress::{BuildEvent, EventSink};
use crate::remote::masked;
use crate::request::{BuildRequest, Context, DockerfileSource};
use crate::special_args::BUILD_NAME;

/// Ended builds that are kept, as with BuildKit.
const KEPT: usize = 50;
/// More of them than that, before their files are removed.
const FORGOTTEN: usize = 16;
/// Bytes of output that are kept of a build.
const LOGGED: usize = 4 << 20;
/// Letters and digits of an id, as buildx's.
const ID_LENGTH: usize = 25;
/// Bytes that the last line is looked for in.
const LAST: u64 = 1 << 16;
/// Bytes of a report that are kept.
const REPORTED: usize = 8 << 10;

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asked {
    /// The build's id.
    pub id: String,
    /// The context's name, with Dockerfile and target where they are not the usual ones.
    pub name: String,
    /// The context.
    pub context: String,
    /// The Dockerfile's name.
    pub dockerfile: String,
    /// The stage.
    pub target: String,
    /// Names of the image.
    pub tags: Vec<String>,
    /// Platforms, where they were given.
    pub platforms: Vec<String>,
    /// When it began, in nanoseconds since the epoch.
    pub started: i64,
}

/// How a build ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ended {
    /// When, in nanoseconds since the epoch.
    pub at: i64,
    /// Why it failed, in one line.
    pub error: Option<String>,
    /// Nobody wanted it any more.
    pub cancelled: bool,
    /// What a user was told of the failure.
    pub report: Option<String>,
    /// The image.
    pub image: Option<String>,
    /// Steps that began.
    pub steps: u32,
    /// Steps that ended well.
    pub completed: u32,
    /// Steps whose results were known.
    pub cached: u32,
}

/// A build that has been, or is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRecord {
    /// What was asked for.
    pub asked: Asked,
    /// How it ended; `None`: it runs.
    pub ended: Option<Ended>,
}

/// One line of a file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Asked(Asked),
    /// Milliseconds since the beginning.
    Event(u64, BuildEvent),
    Ended(Ended),
}

/// An event as it is kept, with the milliseconds since the build's beginning.
pub type Logged = (u64, BuildEvent);

/// The builds of an engine.
#[derive(Debug, Clone)]
pub struct History {
    dir: PathBuf,
}

impl History {
    /// In this directory.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// All of them, the last first; of those that have ended, as many as are kept.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<BuildRecord>> {
        let mut records = self.read_all()?;
        let running = records.partition_point(|record| record.ended.is_none());
        records.truncate(running + KEPT);
        Ok(records)
    }

    fn read_all(&self) -> io::Result<Vec<BuildRecord>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut records = Vec::new();
        for entry in entries {
            match record(&entry?.path()) {
                Ok(record) => records.push(record),
                // Removed meanwhile, or begun at this moment.
                Err(error) => tracing::debug!(%error, "a build's record cannot be read"),
            }
        }
        records.sort_by_key(|record| (record.ended.is_some(), -record.asked.started));
        Ok(records)
    }

    /// The one of this id, of an id that begins so, or (`^0`, `^1`, …) so many before the last.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn find(&self, word: &str) -> io::Result<Option<BuildRecord>> {
        // Also one that is listed no more, but was when somebody noted its id.
        if let Ok(path) = self.place(word)
            && let Ok(record) = record(&path)
        {
            return Ok(Some(record));
        }
        let mut records = self.list()?;
        if let Some(before) = word.strip_prefix('^') {
            records.sort_by_key(|record| -record.asked.started);
            let before: Option<usize> = before.parse().ok();
            return Ok(before.and_then(|at| records.into_iter().nth(at)));
        }
        records.retain(|record| !word.is_empty() && record.asked.id.starts_with(word));
        Ok(match records.len() {
            1 => records.pop(),
            _ => None,
        })
    }

    /// The events of a build.
    ///
    /// # Errors
    /// There is no such build, or its file cannot be read.
    pub fn log(&self, id: &str) -> io::Result<Vec<Logged>> {
        let file = BufReader::new(File::open(self.place(id)?)?);
        let mut events = Vec::new();
        for line in file.lines() {
            // The last line may still be being written.
            if let Ok(Line::Event(at, event)) = serde_json::from_str(&line?) {
                events.push((at, event));
            }
        }
        Ok(events)
    }

    /// Forgets a build. One that runs goes on, unrecorded.
    ///
    /// # Errors
    /// There is no such build, or its file cannot be removed.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        fs::remove_file(self.place(id)?)
    }

    /// Forgets all of them, those that are listed no more, too.
    ///
    /// # Errors
    /// One cannot be removed; the others are.
    pub fn remove_all(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut failed = Ok(());
        for entry in entries {
            let removed = entry.and_then(|entry| fs::remove_file(entry.path()));
            if let Err(error) = removed
                && error.kind() != io::ErrorKind::NotFound
            {
                failed = failed.and(Err(error));
            }
        }
        failed
    }

    /// Only an id is ever made a path.
    fn place(&self, id: &str) -> io::Result<PathBuf> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if id.len() != ID_LENGTH || !id.bytes().all(plain) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(self.dir.join(id))
    }

    /// Records a build from now on.
    pub(crate) fn begin(&self, request: &BuildRequest) -> Option<Recording> {
        let asked = asked(request);
        let begun = || -> io::Result<Recording> {
            // What was written in a Dockerfile may be nobody's business.
            let mut dir = fs::DirBuilder::new();
            dir.recursive(true).mode(0o700).create(&self.dir)?;
            self.forget_old()?;
            let path = self.place(&asked.id)?;
            let file = File::options()
                .append(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            let mut state = State {
                file,
                begun: std::time::Instant::now(),
                ended: Ended::default(),
                left: LOGGED,
                shown: std::collections::HashSet::new(),
                closed: false,
            };
            state.write(&Line::Asked(asked))?;
            Ok(Recording(Arc::new(Mutex::new(state))))
        };
        match begun() {
            Ok(recording) => Some(recording),
            Err(error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "a build is not recorded");
                None
            }
        }
    }

    /// Removes what is not told of any more, some at once: to read all of them takes longer than
    /// many a build.
    fn forget_old(&self) -> io::Result<()> {
        if fs::read_dir(&self.dir)?.count() < KEPT + FORGOTTEN {
            return Ok(());
        }
        let records = self.read_all()?;
        let ended = records.iter().filter(|record| record.ended.is_some());
        for old in ended.skip(KEPT - 1) {
            match self.remove(&old.asked.id) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn asked(request: &BuildRequest) -> Asked {
    let context = match &request.context {
        Context::Empty | Context::Tar(_) => "-".to_owned(),
        Context::Dir(path) => path.display().to_string(),
        Context::Remote(url) => masked(url),
    };
    let file = match &request.dockerfile {
        DockerfileSource::InContext(path) => path.clone(),
        DockerfileSource::File(path) => path.display().to_string(),
        DockerfileSource::Inline(_) => "-".to_owned(),
    };
    let last = context.trim_end_matches('/').rsplit('/').next();
    let mut name = last.unwrap_or_default().to_owned();
    let shown = Path::new(&file)
        .file_name()
        .map(|name| name.to_string_lossy());
    if let Some(shown) = shown.filter(|name| name != "Dockerfile") {
        name.push('/');
        name.push_str(&shown);
    }
    let target = request.target.clone().unwrap_or_default();
    let given = request.build_args.get(BUILD_NAME).cloned().flatten();
    if let Some(given) = given.filter(|given| !given.is_empty()) {
        name = given;
    } else if !target.is_empty() {
        name.push_str(&format!(" ({target})"));
    }
    Asked {
        id: new_id(),
        name,
        context,
        dockerfile: file,
        target,
        tags: request.tags.iter().map(|tag| tag.familiar()).collect(),
        platforms: request.platforms.iter().map(ToString::to_string).collect(),
        started: now(),
    }
}

fn new_id() -> String {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    (0..ID_LENGTH)
        .map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())]))
        .collect()
}

/// Reads what was asked for and how it ended: the first and the last line.
fn record(path: &Path) -> io::Result<BuildRecord> {
    let mut file = BufReader::new(File::open(path)?);
    let mut first = String::new();
    file.by_ref().take(LAST).read_line(&mut first)?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "it is no record of a build");
    let Ok(Line::Asked(asked)) = serde_json::from_str(&first) else {
        return Err(bad());
    };
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(size.saturating_sub(LAST)))?;
    let mut end = Vec::new();
    file.by_ref().take(LAST).read_to_end(&mut end)?;
    let last = end
        .split(|byte| *byte == b'\n')
        .rfind(|line| !line.is_empty());
    let ended = match last.map(serde_json::from_slice) {
        Some(Ok(Line::Ended(ended))) => Some(ended),
        _ => {
            let file = file.into_inner();
            let alone = FlockOperation::NonBlockingLockShared;
            let died = rustix::fs::flock(&file, alone).is_ok();
            died.then(|| -> io::Result<Ended> {
                use std::os::unix::fs::MetadataExt as _;
                let changed = file.metadata()?;
                Ok(Ended {
                    at: changed.mtime() * 1_000_000_000 + changed.mtime_nsec(),
                    error: Some("the builder died".to_owned()),
                    ..Ended::default()
                })
            })
            .transpose()?
        }
    };
    Ok(BuildRecord { asked, ended })
}

/// A build that is being recorded. Dropped before its end was told, it was cancelled.
pub(crate) struct Recording(Arc<Mutex<State>>);

struct State {
    file: File,
    begun: std::time::Instant,
    ended: Ended,
    /// Bytes of output that may still be kept.
    left: usize,
    /// Steps, as opposed to what the builder does of its own.
    shown: std::collections::HashSet<u32>,
    closed: bool,
}

impl State {
    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        // At once, so that others never read half of it for long.
        self.file.write_all(&text)
    }

    fn event(&mut self, event: &BuildEvent) -> io::Result<()> {
        match event {
            BuildEvent::Started(vertex) if !vertex.internal => {
                self.shown.insert(vertex.id);
                self.ended.steps += 1;
            }
            BuildEvent::Completed {
                id, cached, error, ..
            } if self.shown.contains(id) => {
                self.ended.completed += u32::from(error.is_none());
                self.ended.cached += u32::from(*cached);
            }
            // What a transfer says on its way is of no interest afterwards.
            BuildEvent::Progress { .. } => return Ok(()),
            BuildEvent::Log { data, .. } if data.len() > self.left => {
                if self.left > 0 {
                    self.left = 0;
                    return self.put(&BuildEvent::Warning {
                        message: "the rest of the build's output is not recorded".to_owned(),
                        line: None,
                        more: Vec::new(),
                    });
                }
                return Ok(());
            }
            BuildEvent::Log { data, .. } => self.left -= data.len(),
            // Not every build that comes to an end makes one.
            BuildEvent::Image { id, .. } => self.ended.image = Some(id.to_string()),
            _ => {}
        }
        self.put(event)
    }

    fn put(&mut self, event: &BuildEvent) -> io::Result<()> {
        let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.write(&Line::Event(at, event.clone()))
    }

    fn end(&mut self, mut ended: Ended) {
        if self.closed {
            return;
        }
        self.closed = true;
        ended.at = now();
        let counted = &self.ended;
        (ended.steps, ended.completed) = (counted.steps, counted.completed);
        ended.cached = counted.cached;
        ended.image.clone_from(&counted.image);
        if let Err(error) = self.write(&Line::Ended(ended)) {
            tracing::warn!(%error, "the end of a build is not recorded");
        }
    }
}

impl Recording {
    /// Hears what goes on to another.
    pub(crate) fn listen(&self, events: EventSink) -> EventSink {
        let state = self.0.clone();
        Arc::new(move |event| {
            let mut recording = state.lock().unwrap_or_else(PoisonError::into_inner);
            if !recording.closed
                && let Err(error) = recording.event(&event)
            {
                tracing::debug!(%error, "an event of a build is not recorded");
            }
            drop(recording);
            events(event);
        })
    }

    /// Records how it ended.
    pub(crate) fn end(self, outcome: &Result<Digest, BuildError>) {
        let ended = match outcome {
            Ok(_) => Ended::default(),
            Err(BuildError::Cancelled) => cancelled(),
            Err(error) => {
                let mut report = error.report();
                let end = (0..=REPORTED.min(report.len()))
                    .rev()
                    .find(|at| report.is_char_boundary(*at));
                report.truncate(end.unwrap_or_default());
                Ended {
                    error: Some(error.to_string()),
                    report: Some(report).filter(|report| !report.is_empty()),
                    ..Ended::default()
                }
            }
        };
        self.close(ended);
    }

    fn close(&self, ended: Ended) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.end(ended);
    }
}

fn cancelled() -> Ended {
    Ended {
        error: Some(BuildError::Cancelled.to_string()),
        cancelled: true,
        ..Ended::default()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.close(cancelled());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{LogStream, Vertex};

    fn history() -> (tempfile::TempDir, History) {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path().join("builds"));
        (dir, history)
    }

    fn request(dir: &str) -> BuildRequest {
        BuildRequest {
            context: Context::Dir(dir.into()),
            target: Some("app".to_owned()),
            ..BuildRequest::default()
        }
    }

    #[test]
    fn a_build_is_told_of_while_it_runs_and_afterwards() {
        let (_dir, history) = history();
        let recording = history.begin(&request("/src/shop/")).unwrap();
        let sink = recording.listen(Arc::new(|_| {}));
        sink(BuildEvent::Started(Vertex {
            id: 1,
            name: "[1/1] RUN x".to_owned(),
            internal: false,
            instruction: None,
        }));
        let log = |data: &str| BuildEvent::Log {
            id: 1,
            stream: LogStream::Stdout,
            data: data.to_owned(),
        };
        sink(log("hello\n"));
        sink(log(&"x".repeat(LOGGED)));
        sink(log("later\n"));
        let running = history.find("^0").unwrap().unwrap();
        assert_eq!(running.asked.name, "shop (app)");
        assert_eq!(running.ended, None);
        sink(BuildEvent::Completed {
            id: 1,
            cached: true,
            ms: 1,
            error: None,
            result: None,
        });
        let image = Digest::of(b"image");
        sink(BuildEvent::Image {
            id: image.clone(),
            tags: Vec::new(),
        });
        recording.end(&Ok(image.clone()));
        // What comes late is nobody's business.
        sink(log("late\n"));
        let id = running.asked.id;
        let found = history.find(&id[..9]).unwrap().unwrap();
        let ended = found.ended.unwrap();
        assert_eq!(ended.image, Some(image.to_string()));
        assert_eq!((ended.steps, ended.completed, ended.cached), (1, 1, 1));
        let events = history.log(&id).unwrap();
        assert_eq!(events.len(), 5, "{events:?}");
        assert_eq!(events[1].1, log("hello\n"));
        assert!(matches!(&events[2].1, BuildEvent::Warning { .. }));
        history.remove(&id).unwrap();
        assert_eq!(history.list().unwrap(), []);
        assert!(history.log("../../etc/passwd").is_err());
    }

    #[test]
    fn builds_that_came_to_nothing() {
        let (_dir, history) = history();
        drop(history.begin(&request("/a")));
        let cancelled = history.find("^0").unwrap().unwrap().ended.unwrap();
        assert!(cancelled.cancelled);
        let recording = history.begin(&request("/b")).unwrap();
        recording.end(&Err(BuildError::Invalid("no".to_owned())));
        let failed = history.find("^0").unwrap().unwrap().ended.unwrap();
        assert_eq!(failed.error.as_deref(), Some("no"));
        // A builder that died: its file is there, its lock is not.
        let recording = history.begin(&request("/c")).unwrap();
        recording.0.lock().unwrap().closed = true;
        drop(recording);
        let died = history.find("^0").unwrap().unwrap().ended.unwrap();
        assert_eq!(died.error.as_deref(), Some("the builder died"));
    }

    #[test]
    fn old_builds_are_forgotten() {
        let (_dir, history) = history();
        let running = history.begin(&request("/first")).unwrap();
        for _ in 0..KEPT + 3 {
            drop(history.begin(&request("/x")));
        }
        let records = history.list().unwrap();
        assert_eq!(records.len(), KEPT + 1);
        assert_eq!(records[0].asked.context, "/first");
        let files = || fs::read_dir(&history.dir).unwrap().count();
        assert_eq!(files(), KEPT + 4);
        // What is listed no more can still be named.
        let all = history.read_all().unwrap();
        let hidden = &all[KEPT + 1].asked.id;
        assert_eq!(history.find(hidden).unwrap().as_ref(), Some(&all[KEPT + 1]));
        assert_eq!(history.find(&hidden[..20]).unwrap(), None);
        for _ in 0..FORGOTTEN - 3 {
            drop(history.begin(&request("/x")));
        }
        assert_eq!(files(), KEPT + 1);
        assert_eq!(history.list().unwrap().len(), KEPT + 1);
        drop(history.begin(&request("/x")));
        assert_eq!(files(), KEPT + 2);
        history.remove_all().unwrap();
        assert_eq!(files(), 0);
        drop(running);
        assert_eq!(files(), 0);
    }
}
