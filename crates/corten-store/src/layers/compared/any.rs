//! Archives and stacks thrown together at random.

use proptest::prelude::*;

use super::*;

/// Names that often meet.
fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        6 => "[abc]",
        1 => Just(".wh.a".to_owned()),
        1 => Just(".wh..wh..opq".to_owned()),
        1 => prop_oneof!["\\.wh\\.", "\\.wh\\.\\.{1,2}"],
        1 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
    ];
    (proptest::collection::vec(part, 1..4), any::<bool>()).prop_map(|(parts, absolute)| {
        format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"))
    })
}

fn any_line() -> impl Strategy<Value = Line> {
    let kind = prop_oneof![
        5 => Just(b'0'), 5 => Just(b'5'), 3 => Just(b'2'), 3 => Just(b'1'),
        1 => Just(b'3'), 1 => Just(b'6'),
    ];
    let content = (0..200_000_usize, 0..4_u8).prop_map(|(n, by)| match by {
        0 => vec![0; n],
        1 => vec![7; n % 3000],
        2 => [vec![0; n / 2], vec![9; n / 2]].concat(),
        _ => (0..n).map(|i| (i % 250) as u8).collect(),
    });
    let owner = (0..70_000_u32, 0..70_000_u32);
    let mtime = (-2..3_i64, prop_oneof![Just(0), 0..1_000_000_000_u32]);
    let xattrs = proptest::collection::btree_map("user\\.[xy]{1,3}", "[a-z]{0,300}", 0..3);
    (
        path(),
        kind,
        content,
        0..0o7777_u32,
        owner,
        mtime,
        path(),
        xattrs,
    )
        .prop_map(
            |(path, kind, content, mode, owner, mtime, link, xattrs)| Line {
                path: path.into(),
                kind,
                content: if kind == b'0' { content } else { Vec::new() },
                mode,
                owner,
                mtime,
                device: (1, 3),
                link: if matches!(kind, b'1' | b'2') {
                    link.into()
                } else {
                    Vec::new()
                },
                xattrs: xattrs
                    .into_iter()
                    .map(|(key, value)| (key.into(), value.into_bytes()))
                    .collect(),
            },
        )
}

/// So many cases, or as many as `PROPTEST_CASES` says.
fn cases(few: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig::with_cases(asked.and_then(|n| n.parse().ok()).unwrap_or(few))
}

#[test]
fn any_archive_has_one_outcome() {
    let pair = Pair::new();
    let archives = proptest::collection::vec(any_line(), 0..25);
    proptest!(cases(128), |(lines in archives)| {
        // Refused by both is fine, too.
        let _outcome = compare(&pair, &lines);
    });
}

/// What is seen of a layer that was settled on another; how it failed otherwise.
pub(super) fn stacked(
    store: &Store,
    tars: &[Vec<u8>; 2],
) -> Result<BTreeMap<PathBuf, String>, String> {
    let driver = &store.layers().driver;
    let mut stack: Vec<(DiffId, pending::Pending)> = Vec::new();
    let discard = |stack: &[(DiffId, pending::Pending)]| {
        for (diff_id, _) in stack {
            driver.discard(diff_id).unwrap();
        }
        for (diff_id, base) in driver.list_settled().unwrap() {
            for path in driver.settled_paths(&diff_id, &base) {
                if path.exists() {
                    crate::rooted::remove_path(&path).unwrap();
                }
            }
        }
    };
    for (n, tar) in tars.iter().enumerate() {
        match driver.unpack(&mut tar.as_slice()) {
            Ok(staged) => {
                let diff_id = DiffId(Digest::of(&[tar.as_slice(), &[b'0'; 1][..n]].concat()));
                driver.publish(&staged.path, &diff_id, false).unwrap();
                stack.push((diff_id, staged.pending.clone()));
            }
            Err(error) => {
                discard(&stack);
                return Err(error.to_string());
            }
        }
    }
    let ids: Vec<DiffId> = stack.iter().map(|(id, _)| id.clone()).collect();
    let mount = |ids, bases: &[_]| store.layers().mount_settled(ids, bases, Upper::ReadOnly);
    let (top, pending) = &stack[1];
    let below = RootFd::from(mount(&ids[..1], &[]).unwrap());
    let base = ChainId::of(&ids[..1]).unwrap();
    let settled = match pending.is_empty() {
        true => Ok(false),
        false => driver.settle(top, &base, &below, pending),
    };
    drop(below);
    let outcome = match settled {
        Ok(any) => {
            let root = mount(&ids, &[None, any.then_some(base)]).unwrap();
            let mut seen = view(root.as_fd());
            // Overlayfs says 1 link for every directory that it merges, and an image and what
            // settled it are two.
            for line in seen.values_mut().filter(|line| line.starts_with('4')) {
                let words = line.split(' ').filter(|word| !word.starts_with('x'));
                *line = words.collect::<Vec<_>>().join(" ");
            }
            Ok(seen)
        }
        Err(error) => Err(error.to_string()),
    };
    if let Ok(files) = fs::read_dir(store.layers().path(top).parent().unwrap()) {
        let images = files.flatten().map(|entry| entry.path());
        for image in images.filter(|path| path.extension() == Some("erofs".as_ref())) {
            fsck(&image);
        }
    }
    discard(&stack);
    outcome
}

#[test]
fn any_stack_has_one_outcome() {
    let pair = Pair::new();
    let archives = || proptest::collection::vec(any_line(), 0..12);
    proptest!(cases(64), |(base in archives(), top in archives())| {
        let tars = [archive(&base), archive(&top)];
        let directory = stacked(&pair.directories, &tars);
        let image = stacked(&pair.images, &tars);
        match (&directory, &image) {
            (Ok(directory), Ok(image)) => prop_assert_eq!(directory, image),
            (Err(_), Err(_)) => {}
            _ => prop_assert!(false, "one is refused: {directory:?} {image:?}"),
        }
    });
}

#[test]
fn names_are_bytes() {
    let mut odd = line("x", b'0');
    odd.path = OsStr::from_bytes(b"\xff\x01 \\").as_bytes().to_vec();
    both(&[odd]).unwrap();
}
