//! COPY of many files: a layer that is written at once is the one that is written file by file.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use corten_build::Context;
use corten_oci::{DiffId, Digest};
use corten_store::rooted::RootFd;
use corten_store::{LayerForm, Upper};

use super::{Fixture, find_busybox, walk};

/// Each begins with something that is there, or not, and puts many files into or beside it.
const DOCKERFILES: &[(&str, bool)] = &[
    ("FROM scratch\nCOPY src /src\n", true),
    ("FROM scratch\nCOPY . /\n", true),
    ("FROM base\nWORKDIR /app/deep\nCOPY . .\n", true),
    ("FROM base\nCOPY src/a src/b /tmp/new/er/\n", true),
    ("FROM base\nCOPY --link --chown=7:8 src /opt/there\n", true),
    (
        "FROM base\nCOPY --chmod=750 --chown=root src /opt/there/\n",
        true,
    ),
    (
        "FROM base\nCOPY --chmod=u=rwX,go= --exclude=b/* src /opt/\n",
        true,
    ),
    (
        "FROM base AS one\nCOPY src /src\nFROM base\nCOPY --from=one / /all/\n",
        true,
    ),
    // Attributes and names with newlines in them.
    (
        "FROM base AS one\nADD odd.tar /src/\nCOPY src /src/\nFROM base\nCOPY --from=one /src /all/\n",
        true,
    ),
    // Directories of below: one has something new in it, the others keep their times.
    (
        "FROM base\nRUN busybox mkdir -p /old/er && busybox touch -t 200001010000 /old/er /old\n\
         COPY src /old/er/x/\n",
        true,
    ),
    // Whose group everything made there has.
    (
        "FROM base\nRUN busybox mkdir /to && busybox chown 3:9 /to && busybox chmod 2775 /to\n\
         COPY src /to/new/er/\n",
        false,
    ),
    // In places that are taken, and by way of links.
    (
        "FROM base\nRUN mkdir -p /to/a && echo x >/to/a/0001\nCOPY src /to\n",
        true,
    ),
    (
        "FROM base\nRUN busybox ln -s /tmp /to\nCOPY src /to/\n",
        true,
    ),
    // Where only an overlay knows where a link leads.
    (
        "FROM base\nRUN busybox mkdir /x && busybox ln -s x/../tmp /to\nCOPY --chown=5 src /to/\n",
        false,
    ),
];

pub(super) fn copies_at_once(_: &Fixture) {
    let busybox = find_busybox().unwrap();
    let fixtures =
        [LayerForm::Image, LayerForm::Directory].map(|form| Fixture::with_form(&busybox, form));
    if !fixtures[0].store.layers().composes().unwrap() {
        println!("skipped: this kernel does not mount EROFS images from files");
        return;
    }
    assert!(!fixtures[1].store.layers().composes().unwrap());
    many_files(&fixtures[0]);
    for (dockerfile, at_once) in DOCKERFILES {
        let layers = fixtures.each_ref().map(|fixture| {
            let mut request = fixture.request(dockerfile);
            request.context = Context::Dir(fixtures[0].dir.path().join("context"));
            // What is said to be of now is said to be of then.
            let epoch = Some("1000000000".to_owned());
            let arguments = &mut request.build_args;
            arguments.insert("SOURCE_DATE_EPOCH".to_owned(), epoch);
            let told = fixture.run(request);
            fixture.image(&told).layers.last().unwrap().clone()
        });
        assert_eq!(layers[0], layers[1], "{dockerfile}");
        let at = |n: usize| fixtures[n].store.layers().path(&layers[n]);
        let files = [at(0).is_file(), at(1).is_file()];
        assert_eq!(files, [*at_once, false], "{dockerfile}");
        let mut tar = Vec::new();
        let written = fixtures[0].store.layers().tar(&layers[0], &mut tar);
        written.unwrap();
        assert_eq!(Digest::of(&tar), *layers[0].digest(), "{dockerfile}");
        let [image, directory] = fixtures
            .each_ref()
            .map(|fixture| shown(fixture, &layers[0]));
        assert_eq!(image, directory, "{dockerfile}");
    }
    let findings = fixtures[0].store.check(false).unwrap();
    assert!(findings.is_empty(), "{findings:?}");
}

fn shown(fixture: &Fixture, layer: &DiffId) -> Vec<String> {
    let layers = std::slice::from_ref(layer);
    let mount = fixture.store.layers().mount(layers, Upper::ReadOnly);
    let mut found = Vec::new();
    walk(&RootFd::from(mount.unwrap()), Path::new(""), &mut found);
    found
}

/// Names whose order is not that of paths, links of both kinds, and times before the epoch that
/// is asked for.
fn many_files(fixture: &Fixture) {
    let src = fixture.dir.path().join("context/src");
    for n in 0..600 {
        let dir = ["a", "a.b", "b", "b/c"][n % 4];
        fixture.file(&format!("src/{dir}/{n:04}"), format!("{n}").repeat(n));
    }
    fixture.file("src/b-file", "x");
    fixture.file("src/large", vec![7; 1 << 20]);
    fixture.file("src/empty", "");
    fixture.file(&format!("src/a/{}", "n".repeat(120)), "of a long name");
    let mut odd = tar::Builder::new(Vec::new());
    let long = format!("{}\n9 uid=12\n", "l".repeat(120));
    for (name, key, value) in [
        // cap_dac_override,cap_fowner=ep: 0x0a
        (
            "odd",
            "SCHILY.xattr.security.capability",
            &b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..],
        ),
        ("odder", "SCHILY.xattr.user.note", b"a\n12 path=bcd\n"),
        ("long", "path", long.as_bytes()),
    ] {
        odd.append_pax_extensions([(key, value)]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_mode(0o755);
        header.set_size(4);
        header.set_mtime(900_000_000);
        header.set_cksum();
        odd.append(&header, &b"odd\n"[..]).unwrap();
    }
    fixture.file("odd.tar", odd.into_inner().unwrap());
    let mode = |name: &str, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(src.join(name), mode).unwrap();
    };
    mode("b-file", 0o4755);
    mode("a.b", 0o1770);
    symlink("../elsewhere", src.join("link")).unwrap();
    std::fs::hard_link(src.join("a/0000"), src.join("b/first")).unwrap();
    std::fs::hard_link(src.join("a/0000"), src.join("a/zlast")).unwrap();
    for n in 0..100 {
        let dir = ["a", "a.b", "b", "b/c"][n % 4];
        let path = src.join(format!("{dir}/{n:04}"));
        let file = std::fs::File::options().append(true).open(path).unwrap();
        let time = Duration::new(900_000_000 + n as u64, n as u32 * 1000);
        file.set_modified(SystemTime::UNIX_EPOCH + time).unwrap();
    }
    for (n, dir) in ["src", "src/b", "src/a"].into_iter().enumerate() {
        let dir = std::fs::File::open(src.join("..").join(dir)).unwrap();
        let time = Duration::new(800_000_000 + n as u64, 1);
        dir.set_modified(SystemTime::UNIX_EPOCH + time).unwrap();
    }
}
