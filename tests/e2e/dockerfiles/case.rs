//! A case as it is written down: parts that begin with `== KIND ARGUMENTS`, each with the lines
//! below it as its content. What the kinds mean is told in README.md beside the cases.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};

/// The time of every file of a context, by which it is known in an image.
pub(crate) const THEN: i64 = 981_173_106;

#[derive(Debug)]
struct Part {
    words: Vec<String>,
    content: String,
}

#[derive(Debug)]
pub(crate) struct Case {
    path: PathBuf,
    /// All but the expectation.
    text: String,
    parts: Vec<Part>,
    expected: String,
}

/// A case that lies in a directory, ready to be built.
#[derive(Debug)]
pub(crate) struct Laid {
    pub(crate) context: PathBuf,
    pub(crate) flags: Vec<String>,
}

impl Case {
    pub(crate) fn read(path: &Path) -> Self {
        let whole = fs::read_to_string(path).unwrap();
        let (text, expected) = match whole.split_once("\n== expect\n") {
            Some((text, expected)) => (format!("{text}\n"), expected.to_owned()),
            None => (format!("{}\n", whole.trim_end_matches('\n')), String::new()),
        };
        let mut parts: Vec<Part> = Vec::new();
        for line in text.split_inclusive('\n') {
            if let Some(head) = line.strip_prefix("== ") {
                parts.push(Part {
                    words: head.split_whitespace().map(str::to_owned).collect(),
                    content: String::new(),
                });
            } else if let Some(part) = parts.last_mut() {
                part.content.push_str(line);
            }
        }
        Self {
            path: path.to_owned(),
            text,
            parts,
            expected,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.path.file_stem().unwrap().to_str().unwrap()
    }

    pub(crate) fn expected(&self) -> &str {
        &self.expected
    }

    /// Writes down what came of it.
    pub(crate) fn record(&self, outcome: &str) {
        let text = format!("{}\n== expect\n{outcome}", self.text.trim_end_matches('\n'));
        fs::write(&self.path, text).unwrap();
    }

    /// Writes its files; `url` is where those of `site` are served.
    pub(crate) fn lay(&self, dir: &Path, url: &str) -> Laid {
        let context = dir.join("context");
        fs::create_dir_all(&context).unwrap();
        let mut flags = Vec::new();
        for part in &self.parts {
            let words: Vec<&str> = part.words.iter().map(String::as_str).collect();
            let content = part.content.replace("{url}", url);
            match words.as_slice() {
                ["Dockerfile"] => fs::write(context.join("Dockerfile"), content).unwrap(),
                ["flags"] => flags.extend(
                    content
                        .lines()
                        .map(|line| line.replace("{dir}", dir.to_str().unwrap())),
                ),
                ["differs", ..] => {} // read by scripts/compare-builders.py alone
                ["outside", name] => {
                    let path = dir.join(name);
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, content).unwrap();
                }
                [kind, name, rest @ ..] => entry(&context, kind, name, rest, &content),
                other => panic!("{}: unknown part {other:?}", self.name()),
            }
        }
        age(&context);
        Laid { context, flags }
    }
}

/// Makes one thing of the context.
fn entry(context: &Path, kind: &str, name: &str, rest: &[&str], content: &str) {
    let path = context.join(name.replace("%20", " "));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    match (kind, rest) {
        ("file" | "dir", rest) => {
            let is_dir = kind == "dir";
            if is_dir {
                fs::create_dir_all(&path).unwrap();
            } else {
                let content = content
                    .replace("\\r", "\r")
                    .replace("\\0", "\0")
                    .replace("\\ufeff", "\u{feff}");
                fs::write(&path, content).unwrap();
            }
            let mode = rest
                .first()
                .map_or(if is_dir { 0o755 } else { 0o644 }, |mode| {
                    u32::from_str_radix(mode, 8).unwrap()
                });
            if let Some((uid, gid)) = rest.get(1).and_then(|owner| owner.split_once(':')) {
                chown(
                    &path,
                    Some(uid.parse().unwrap()),
                    Some(gid.parse().unwrap()),
                )
                .unwrap();
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        ("link", [target]) => symlink(target, &path).unwrap(),
        ("hardlink", [target]) => fs::hard_link(context.join(target), &path).unwrap(),
        ("fifo", []) => {
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        }
        ("char", [number]) => {
            let (major, minor) = number.split_once(':').unwrap();
            let device = rustix::fs::makedev(major.parse().unwrap(), minor.parse().unwrap());
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, device).unwrap();
        }
        ("socket", []) => drop(std::os::unix::net::UnixListener::bind(&path).unwrap()),
        // Of things that were made before.
        ("tar", [flags, members @ ..]) => {
            age(context);
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(context).args(["--owner=0", "--group=0"]);
            tar.arg(flags).arg(&path).args(members);
            assert!(tar.status().unwrap().success());
        }
        ("remove", []) if path.is_dir() => fs::remove_dir_all(&path).unwrap(),
        ("remove", []) => fs::remove_file(&path).unwrap(),
        _ => panic!("unknown part {kind} {name} {rest:?}"),
    }
}

/// Gives everything the same time.
fn age(path: &Path) {
    if fs::symlink_metadata(path).unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            age(&entry.unwrap().path());
        }
    }
    let then = Timespec {
        tv_sec: THEN,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: then,
        last_modification: then,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
