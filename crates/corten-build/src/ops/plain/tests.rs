//! What is made at once is what is written file by file.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use corten_db::Database;
use corten_dockerfile::{IgnoreRules, ModeChange};
use corten_oci::Digest;
use corten_store::rooted::RootFd;
use corten_store::{LayerForm, Store, Upper};
use rustix::fs::{OFlags, XattrFlags};

use super::*;
use crate::cancel::Cancel;
use crate::ops;
use crate::ops::below::Stacks;
use crate::ops::leavings::Leavings;
use crate::ops::tree::Selection;
use crate::ops::write::{self, Manner, Writer};

/// What is said to be of now is said to be of then, in seconds since the epoch.
const LAST: i64 = 1_000_000_000;

/// A file, directory or link, its mode and owner: `link -> target`, `directory/`.
fn make(root: &Path, what: &[(&str, u32, u32)]) {
    for (number, (name, mode, owner)) in what.iter().enumerate() {
        if let Some((name, target)) = name.split_once(" -> ") {
            symlink(target, root.join(name)).unwrap();
            continue;
        }
        let path = root.join(name.trim_end_matches('/'));
        match name.ends_with('/') {
            true => fs::create_dir_all(&path).unwrap(),
            false => fs::write(&path, name.repeat(number + 1)).unwrap(),
        }
        std::os::unix::fs::chown(&path, Some(*owner), Some(*owner)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
    }
    // Deepest first: what is put into a directory changes its time.
    for (number, (name, ..)) in what.iter().enumerate().rev() {
        if !name.contains(" -> ") {
            let time = Duration::new(900_000_000 + number as u64, 1000 * number as u32);
            let file = fs::File::open(root.join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + time).unwrap();
        }
    }
}

/// What is at the very bottom, and what the next layer has: some of it gone, or replaced.
const OLD: &[(&str, u32, u32)] = &[
    ("gone/", 0o755, 2),
    ("gone/x/", 0o755, 2),
    ("emptied/", 0o755, 2),
    ("emptied/x/", 0o755, 2),
    ("swapped -> emptied", 0, 0),
    ("turned/", 0o755, 2),
    ("turned/x/", 0o755, 2),
    ("merged/", 0o755, 2),
    ("merged/old/", 0o750, 2),
];
const NEWER: &[(&str, u32, u32)] = &[
    ("emptied/", 0o710, 5),
    ("swapped/", 0o711, 5),
    ("turned -> emptied", 0, 0),
    ("merged/y/", 0o700, 5),
];

const BASE: &[(&str, u32, u32)] = &[
    ("sticky/", 0o1777, 0),
    ("odd/", 0o4711, 3),
    ("marked/", 0o755, 0),
    ("marked/in/", 0o755, 0),
    ("lists/", 0o755, 0),
    ("holder/", 0o755, 0),
    ("holder/d/", 0o755, 0),
    ("holder/y/", 0o755, 0),
    ("app/", 0o750, 7),
    ("app/d/", 0o700, 8),
    ("app/d/x", 0o600, 9),
    ("app/d/other/", 0o711, 9),
    ("app/f", 0o640, 9),
    ("app/is-link -> f", 0, 0),
    ("app/y/", 0o755, 0),
    ("giving/", 0o2775, 3),
    ("giving/in/", 0o755, 3),
    ("usr/", 0o755, 0),
    ("usr/bin/", 0o751, 4),
    ("usr/bin/tool", 0o755, 0),
    ("bin -> usr/bin", 0, 0),
    ("usr/up -> ../app/d/../d", 0, 0),
    ("usr/back -> ../../app", 0, 0),
    ("abs -> /usr/bin", 0, 0),
    ("twice -> bin", 0, 0),
    ("nowhere -> no/where", 0, 0),
    ("to-file -> app/f", 0, 0),
    ("round -> round", 0, 0),
];

const CONTEXT: &[(&str, u32, u32)] = &[
    ("f", 0o644, 5),
    ("g", 0o4755, 5),
    ("tool", 0o755, 0),
    ("empty/", 0o700, 5),
    ("d/", 0o2775, 6),
    ("d/x", 0o600, 6),
    ("d/y/", 0o1777, 6),
    ("d/y/z", 0o644, 6),
    ("d.d/", 0o755, 6),
    ("d.d/q", 0o444, 6),
    ("d-link -> d", 0, 0),
    ("links/", 0o755, 0),
    ("links/is-link -> x", 0, 0),
    ("links/a", 0o644, 5),
    ("ways/", 0o755, 0),
    ("ways/over -> /usr/bin", 0, 0),
];

/// One COPY (sources, destination, owner, mode, content of a here-document) or, without sources
/// and content, a WORKDIR; and whether it is plain.
struct Step {
    /// As with `--link`: whatever is below.
    link: bool,
    sources: &'static [&'static str],
    to: &'static str,
    owner: Option<(u32, u32)>,
    chmod: Option<&'static str>,
    parents: bool,
    inline: Option<&'static str>,
    plain: bool,
    /// Whether it is with all that is below mounted.
    mounted: bool,
}

const fn copy_of(sources: &'static [&'static str], to: &'static str, plain: bool) -> Step {
    Step {
        link: false,
        sources,
        to,
        owner: None,
        chmod: None,
        parents: false,
        inline: None,
        plain,
        mounted: plain,
    }
}

const fn with(step: Step, owner: u32, chmod: Option<&'static str>) -> Step {
    Step {
        owner: Some((owner, owner)),
        chmod,
        ..step
    }
}

const fn parents(step: Step) -> Step {
    Step {
        parents: true,
        ..step
    }
}

/// A layer's own links are not known when the layer is: then it is not plain.
const fn mounted(step: Step) -> Step {
    Step {
        plain: false,
        mounted: true,
        ..step
    }
}

const fn link(step: Step) -> Step {
    Step { link: true, ..step }
}

const fn here(to: &'static str, plain: bool) -> Step {
    Step {
        inline: Some("a file of the Dockerfile\n"),
        ..copy_of(&[], to, plain)
    }
}

/// Each row is one stage: what a step puts somewhere the next ones lie on.
const STAGES: &[&[Step]] = &[
    // Files, new and in the place of others.
    &[
        copy_of(&["f"], "/f", true),
        copy_of(&["g"], "/f", true),
        copy_of(&["f", "g"], "/app/", true),
        copy_of(&["g"], "/app/d/x", true),
        copy_of(&["f"], "/new/deep/er/file", true),
        copy_of(&["g"], "/new/deep/", true),
        copy_of(&["f"], "/app", true),
        copy_of(&["f"], "/app/d/f/g", true),
        copy_of(&["g"], "/usr/bin/tool", true),
    ],
    // Directories that are there take after what is copied, and keep what is in them.
    &[
        copy_of(&["d"], "/app/d", true),
        copy_of(&["."], "/app", true),
        copy_of(&["d", "d.d"], "/app/y", true),
        copy_of(&["empty"], "/usr/bin", true),
        copy_of(&["empty"], "/app/empty", true),
        copy_of(&["empty"], "/app/empty", true),
        copy_of(&["d"], "/", true),
    ],
    // By way of links.
    &[
        copy_of(&["tool"], "/bin/tool", true),
        copy_of(&["f"], "/bin/", true),
        copy_of(&["f"], "/abs", true),
        copy_of(&["d"], "/twice/sub", true),
        copy_of(&["g"], "/usr/back/new/", true),
        copy_of(&["d"], "/twice", true),
        copy_of(&["f"], "/usr/up/", false),
        copy_of(&["f"], "/to-file", false),
        copy_of(&["f"], "/nowhere", false),
        copy_of(&["ways"], "/", true),
        mounted(copy_of(&["f"], "/over/", false)),
        mounted(copy_of(&[], "/over/new", false)),
        copy_of(&["d-link"], "/l", true),
        copy_of(&["d"], "/l2", true),
    ],
    // Owners and modes.
    &[
        with(copy_of(&["d"], "/o/d", true), 11, None),
        with(copy_of(&["f"], "/p/f", true), 12, Some("600")),
        with(copy_of(&["."], "/app", true), 13, Some("u=rwX,go=")),
        with(copy_of(&["d"], "/q/r", true), 14, Some("2750")),
        with(copy_of(&["f"], "/q/r/y/s/f", true), 15, Some("g+s")),
        copy_of(&["f"], "/q/r/y/t/f", false),
    ],
    // Whose group those have that are made there.
    &[
        copy_of(&["f"], "/giving/f", true),
        copy_of(&["f"], "/giving/new/f", false),
        copy_of(&["f"], "/giving/new/g", true),
        copy_of(&["f"], "/giving/in/new/f", true),
        with(copy_of(&["f"], "/giving/newer/f", true), 0, None),
        copy_of(&["d"], "/made", true),
        copy_of(&["d"], "/made/d", true),
    ],
    // What is in the place of something else.
    &[
        copy_of(&["links"], "/app", true),
        copy_of(&["f"], "/app/is-link", false),
        copy_of(&["f"], "/app/is-link/", false),
        copy_of(&["d"], "/app/f", false),
        copy_of(&["f"], "/app/f/g", false),
        copy_of(&["f", "f"], "/app/", false),
    ],
    &[
        copy_of(&["f"], "/app/is-link", false),
        here("/app/is-link", false),
        here("/here", true),
        here("/usr/bin/", true),
        with(here("/here", true), 21, Some("700")),
        with(here("/hers/", true), 21, Some("a=r")),
        copy_of(&["links"], "/", true),
        copy_of(&["f"], "/is-link", false),
    ],
    &[
        parents(copy_of(&["d/y/z"], "/app/", true)),
        parents(copy_of(&["d/y"], "/app/d", true)),
        parents(copy_of(&["./d/./y/z", "links/a"], "/new", true)),
        parents(copy_of(&["d"], "/", true)),
    ],
    // WORKDIR.
    &[
        copy_of(&[], "/", true),
        copy_of(&[], "/app/d", true),
        copy_of(&[], "/app/d/e/f", true),
        with(copy_of(&[], "/app/d/e/f/g/h", true), 31, None),
        copy_of(&["f"], "/app/d/e/f/g/h/", true),
        copy_of(&[], "/bin/new", true),
        copy_of(&[], "/giving/new/er", false),
        copy_of(&[], "/nowhere/x", false),
        copy_of(&[], "/app/f", false),
        copy_of(&[], "/round/x", false),
    ],
    // What some layers of the image hide from others.
    &[
        copy_of(&["f"], "/gone/x", true),
        copy_of(&["f"], "/emptied/x", true),
        copy_of(&["f"], "/swapped/x", true),
        copy_of(&[], "/turned/y", true),
        copy_of(&["f"], "/turned/z/", true),
        copy_of(&["d"], "/merged", true),
        copy_of(&["f"], "/merged/old/", true),
    ],
    // Modes and attributes of directories that something is put into.
    &[
        copy_of(&["f"], "/sticky/f", true),
        copy_of(&["f"], "/sticky/new/f", true),
        copy_of(&["f"], "/odd/new/f", true),
        copy_of(&["f"], "/marked/f", false),
        copy_of(&["f"], "/marked/new/f", false),
        copy_of(&["d"], "/marked", false),
        copy_of(&["f"], "/marked/in/f", false),
        copy_of(&[], "/marked/new/er", false),
        parents(copy_of(&["d/y/z"], "/marked/in/", false)),
        copy_of(&["d"], "/holder", false),
        parents(copy_of(&["d/y/z"], "/holder/", false)),
        copy_of(&["f"], "/holder/new/f", true),
        copy_of(&["f"], "/lists/f", false),
        copy_of(&[], "/lists/new", false),
    ],
    // More than is made without threads.
    &[
        copy_of(&["big"], "/app/", true),
        copy_of(&["big", "d"], "/bin/", true),
        with(copy_of(&["big"], "/new/big", true), 17, Some("640")),
    ],
    // A directory hides a link, or a file.
    &[
        link(copy_of(&["f"], "/usr/back/", true)),
        copy_of(&["g"], "/usr/back/d", true),
        copy_of(&[], "/usr/back/y", true),
        link(copy_of(&["d"], "/bin/", true)),
        copy_of(&["f"], "/bin/tool", true),
        copy_of(&[], "/bin/new", true),
        link(copy_of(&["d"], "/app/f/", true)),
        copy_of(&["g"], "/app/f/other", true),
        copy_of(&["f"], "/app/f/y", true),
    ],
    // A file hides a directory, also from what is put on it.
    &[
        link(copy_of(&["f"], "/app/d", true)),
        link(copy_of(&["d.d"], "/app/d/", true)),
        copy_of(&["g"], "/app/d/other", true),
        copy_of(&["d"], "/n", true),
        link(copy_of(&["f"], "/n", true)),
        link(copy_of(&["d.d"], "/n/", true)),
        copy_of(&[], "/n/y", true),
        copy_of(&["f"], "/n/x/deep", true),
    ],
];

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
    base: Vec<DiffId>,
    last: Option<i64>,
    cancel: Cancel,
}

impl Fixture {
    /// `None` where owners cannot be set, nor anything mounted.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let context = dir.path().join("context");
        fs::create_dir(&context).unwrap();
        make(&context, CONTEXT);
        fs::hard_link(context.join("links/a"), context.join("links/b")).unwrap();
        let big = (0..3_u64 << 19).map(|n| (n * n / 255).to_le_bytes()[0]);
        let big: Vec<u8> = big.collect();
        fs::write(context.join("big"), big).unwrap();
        let database = Database::open(&dir.path().join("db"), &[corten_store::SCHEMA]).unwrap();
        let root = dir.path().join("store");
        let store = Store::open_with(&root, database, LayerForm::Directory).keeping();
        let mut base = Vec::new();
        let mut layer = |change: &dyn Fn(&Path)| {
            let (work, root) = ops::writable(&store, &base).unwrap();
            change(Path::new(&format!(
                "/proc/self/fd/{}",
                root.as_fd().as_raw_fd()
            )));
            drop(root);
            base.push(store.layers().commit(work).unwrap().diff_id);
        };
        layer(&|root| make(root, OLD));
        layer(&|root| {
            for name in ["gone", "emptied", "turned"] {
                fs::remove_dir_all(root.join(name)).unwrap();
            }
            fs::remove_file(root.join("swapped")).unwrap();
            make(root, NEWER);
        });
        layer(&|root| {
            make(root, BASE);
            let set = |name: &str, key: &str, value: &[u8]| {
                let flags = XattrFlags::empty();
                rustix::fs::setxattr(root.join(name), key, value, flags).unwrap();
            };
            for name in ["marked", "holder/d", "holder/y"] {
                set(name, "trusted.mark", b"x");
            }
            // Version 2: rwx for the owner and the group, nothing for others.
            let list: Vec<u8> = [(1, 7), (4, 7), (0x20, 0)]
                .iter()
                .flat_map(|(tag, may): &(u16, u16)| {
                    let words = [tag.to_le_bytes(), may.to_le_bytes()];
                    words.into_iter().flatten().chain([0xff; 4])
                })
                .collect();
            set(
                "lists",
                "system.posix_acl_default",
                &[&[2, 0, 0, 0], &list[..]].concat(),
            );
        });
        Some(Self {
            dir,
            store,
            base,
            last: Some(LAST),
            cancel: Cancel::default(),
        })
    }

    fn tree(&self, foreign: bool) -> Tree {
        Tree {
            root: RootFd::open(&self.dir.path().join("context")).unwrap(),
            ignore: IgnoreRules::default(),
            foreign,
            remember: false,
        }
    }

    fn image(&self, stack: &[DiffId]) -> Tree {
        let mount = self.store.layers().mount(stack, Upper::ReadOnly);
        Tree::of_image(RootFd::from(mount.unwrap()))
    }

    fn entries(&self, step: &Step, tree: &Tree) -> Vec<Entry> {
        let sources: Vec<String> = step.sources.iter().map(|s| (*s).to_owned()).collect();
        let selection = Selection {
            sources: &sources,
            exclude: &[],
            parents: step.parents,
            into_directory: step.to.ends_with('/'),
            literal: false,
            at_most: None,
        };
        tree.select(&selection).unwrap()
    }

    /// `None`: not at once.
    fn at_once(
        &self,
        step: &Step,
        (tree, manner): (&Tree, Manner<'_>),
        (stacks, stack): (&Stacks, &[DiffId]),
    ) -> Option<Option<DiffId>> {
        let below = match step.link {
            true => Below::default(),
            false => stacks.below(&self.store, stack).unwrap(),
        };
        let composing = Composing {
            manner,
            last: self.last,
            cancel: &self.cancel,
        };
        let layers = self.store.layers();
        let made = match (step.sources, step.inline) {
            ([], None) => directory(layers, &below, step.to, &composing),
            _ => {
                let copied = Copied {
                    tree,
                    entries: &mut self.entries(step, tree),
                    inline: &inlines(step),
                    destination: step.to,
                };
                copy(layers, &below, copied, &composing)
            }
        };
        match made.unwrap() {
            Made::Layer(layer, listing) => {
                stacks.learn(&layer, listing);
                Some(Some(layer))
            }
            Made::Nothing => Some(None),
            Made::Not => None,
        }
    }

    /// `None`: it cannot be done.
    fn by_file(
        &self,
        step: &Step,
        (tree, manner): (&Tree, Manner<'_>),
        stack: &[DiffId],
    ) -> Option<Option<DiffId>> {
        let stack = if step.link { &[] } else { stack };
        let (work, root) = ops::writable(&self.store, stack).unwrap();
        let to = Path::new(step.to);
        let writer = Writer {
            manner,
            ..Writer::plain(&root, &self.cancel)
        };
        if step.sources.is_empty() && step.inline.is_none() {
            write::make_directory(&root, to, manner.owner, 0o755).ok()?;
        } else {
            let mut entries = self.entries(step, tree);
            let into = step.to.ends_with('/') || write::is_directory(&root, to);
            if into {
                into_directory(&mut entries);
            }
            writer.entries(tree, &entries, to).ok()?;
            for (name, content) in inlines(step) {
                let target = if into { to.join(name) } else { to.to_owned() };
                writer.inline(&target, &content).ok()?;
            }
        }
        drop(root);
        Some(ops::settle(&self.store, &Leavings::default(), work, self.last).unwrap())
    }
}

fn files(tree: &Tree) -> Vec<Entry> {
    let mut found = tree.select(&Selection::of(&String::new(), true)).unwrap();
    found.retain(|entry| !entry.path.as_os_str().is_empty());
    found
}

fn inlines(step: &Step) -> Vec<(String, String)> {
    let inline = step.inline.iter();
    inline
        .map(|content| ("name".to_owned(), (*content).to_owned()))
        .collect()
}

#[test]
fn layers_made_at_once_are_those_written_by_file() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    for (foreign, stage) in [true, false].into_iter().flat_map(|foreign| {
        let stages = STAGES.iter();
        stages.map(move |stage| (foreign, *stage))
    }) {
        let tree = fixture.tree(foreign);
        let stacks = Stacks::default();
        let mut stack = fixture.base.clone();
        for step in stage {
            let chmod = step.chmod.map(|mode| ModeChange::parse(mode).unwrap());
            let manner = Manner {
                owner: step.owner,
                chmod: chmod.as_ref(),
            };
            let named = format!("{:?} to {} (foreign: {foreign})", step.sources, step.to);
            let how = (&tree, manner);
            // With what is known of the layers below, with those mounted, and by file.
            let known = fixture.at_once(step, how, (&stacks, &stack));
            let mounted = fixture.at_once(step, how, (&Stacks::default(), &stack));
            let expected = fixture.by_file(step, how, &stack);
            assert_eq!(known.is_some(), step.plain, "{named}");
            if step.plain {
                assert_eq!(known, expected, "{named}");
            }
            assert_eq!(mounted.is_some(), step.mounted, "{named}");
            if step.mounted {
                assert_eq!(mounted, expected, "{named}");
            }
            if let Some(Some(layer)) = &known {
                let mut tar = Vec::new();
                fixture.store.layers().tar(layer, &mut tar).unwrap();
                assert_eq!(Digest::of(&tar), *layer.digest(), "{named}");
            }
            stack.extend(expected.flatten());
        }
        // Everything that is known is what is there.
        let below = stacks.below(&fixture.store, &stack).unwrap();
        let all = fixture.image(&stack);
        for entry in files(&all) {
            let known = below.look(&entry.path).unwrap().unwrap();
            let shown = (known.kind, known.mode, known.owner, known.mtime);
            let there = (entry.kind, entry.mode, (entry.uid, entry.gid), entry.mtime);
            assert_eq!(shown, there, "{}", entry.path.display());
        }
        // And what a layer hides is not.
        for layer in &stack {
            let image = fixture.image(std::slice::from_ref(layer));
            for entry in files(&image) {
                let open =
                    |path: &Path, flags| all.root.open_without_links(path, OFlags::PATH | flags);
                let above = entry
                    .path
                    .parent()
                    .filter(|path| !path.as_os_str().is_empty());
                // What is in a link, or in a file, is asked for by nobody.
                if above.is_none_or(|above| open(above, OFlags::DIRECTORY).is_ok()) {
                    let known = below.look(&entry.path).unwrap();
                    let is_there = open(&entry.path, OFlags::NOFOLLOW).is_ok();
                    assert_eq!(known.is_some(), is_there, "{}", entry.path.display());
                }
            }
        }
    }
    let tmp = fs::read_dir(fixture.dir.path().join("store/tmp")).unwrap();
    // The one that small layers were made in.
    assert_eq!(tmp.count(), 1);
}

/// Where nothing is of now, there has to be no bound.
#[test]
fn times_that_are_known_are_kept() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    fixture.last = None;
    let tree = fixture.tree(true);
    let how = (&tree, Manner::default());
    for to in ["/app/y", "/merged", "/twice", "/sticky"] {
        let step = copy_of(&["d"], to, true);
        let stack = &fixture.base;
        let made = fixture.at_once(&step, how, (&Stacks::default(), stack));
        assert!(made.is_some(), "{to}");
        assert_eq!(made, fixture.by_file(&step, how, stack), "{to}");
    }
}

#[test]
fn owners_are_read_where_they_are() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let stacks = Stacks::default();
    let tree = fixture.tree(true);
    let mut stack = fixture.base.clone();
    for (to, readable) in [("/f", true), ("/etc/f", false)] {
        let step = copy_of(&["f"], to, true);
        let made = fixture.at_once(&step, (&tree, Manner::default()), (&stacks, &stack));
        stack.extend(made.unwrap());
        let below = stacks.below(&fixture.store, &stack).unwrap();
        assert_eq!(below.accounts().is_some(), readable, "{to}");
    }
}

#[test]
fn what_ends_early_leaves_nothing() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let tree = fixture.tree(true);
    let below = Stacks::default().below(&fixture.store, &[]).unwrap();
    let step = copy_of(&["d", "f"], "/new/", true);
    let layers = fixture.store.layers();
    let count = || layers_of(&fixture).len();
    for bulk in [Bulk::Small, Bulk::Medium] {
        let mut entries = fixture.entries(&step, &tree);
        let place = compose::destination(&below, Path::new("/new/"))
            .unwrap()
            .unwrap();
        into_directory(&mut entries);
        let make = |cancel: &Cancel| {
            let composing = Composing {
                manner: Manner::default(),
                last: None,
                cancel,
            };
            let plan = compose::plan(&below, &place, &entries, &[], &composing.manner);
            let plan = plan.unwrap();
            compose(layers, (Some(&tree), bulk), plan, "/new/", &composing)
        };
        let before = count();
        assert!(matches!(make(&fixture.cancel), Ok(Made::Layer(..))));
        let one = count();
        assert!(one > before);
        let grown = "x".repeat(100 * one);
        fs::write(fixture.dir.path().join("context/f"), grown).unwrap();
        let Err(PlainError::Copy((_, error))) = make(&fixture.cancel) else {
            panic!("a changed file was copied");
        };
        assert!(crate::ops::content::has_changed(&error), "{error}");
        let stopped = Cancel::default();
        stopped.cancel();
        let Err(PlainError::Copy((_, error))) = make(&stopped) else {
            panic!("nothing was cancelled");
        };
        assert_eq!(error.kind(), std::io::ErrorKind::Interrupted);
        assert_eq!(count(), one);
    }
}

fn layers_of(fixture: &Fixture) -> Vec<PathBuf> {
    let layers = fs::read_dir(fixture.dir.path().join("store/layers")).unwrap();
    layers.map(|entry| entry.unwrap().path()).collect()
}
