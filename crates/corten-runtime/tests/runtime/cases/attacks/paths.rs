//! Names on the host that come from a caller, a bundle or an image: ids, pid files, roots,
//! account files.

use std::fs;
use std::os::unix::fs::symlink;

use super::Bundle;
use crate::Case;
use crate::support::Container;

pub const CASES: &[Case] = &[
    ("attack_ids_that_are_paths", ids_that_are_paths),
    ("attack_pid_file_is_a_link", pid_file_is_a_link),
    ("attack_root_is_a_link", root_is_a_link),
    ("attack_account_files", account_files),
];

/// An id that is a path would make, and `delete --force` remove, directories anywhere.
fn ids_that_are_paths() {
    let container = Container::sh("true");
    let bundle = Bundle::new(&container);
    let victim = bundle.path().join("victim");
    fs::create_dir_all(&victim).unwrap();
    fs::write(victim.join("state.json"), "{}").unwrap();
    fs::create_dir_all(bundle.path().join("state")).unwrap();
    for id in ["../victim", "..", ".", "a/b", "/victim", "", "a\nb", "a\0b"] {
        for command in [
            &["delete", "--force"][..],
            &["delete"],
            &["kill"],
            &["state"],
            &["start"],
            &["run", "--bundle", bundle.path().to_str().unwrap()],
        ] {
            if id.contains('\0') {
                continue; // no argument can hold one
            }
            let output = bundle.command().args(command).arg(id).output().unwrap();
            assert!(!output.status.success(), "{command:?} {id:?}: {output:?}");
        }
        assert!(victim.join("state.json").exists(), "{id:?}");
    }
    let left: Vec<_> = fs::read_dir(bundle.path().join("state")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The pid file's directory belongs to somebody else, who has put links there: the file
/// they lead to is not written to.
fn pid_file_is_a_link() {
    let container = Container::sh("true");
    let bundle = Bundle::new(&container);
    let dir = bundle.path().join("shared");
    fs::create_dir(&dir).unwrap();
    let victim = bundle.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    for name in ["pid", ".pid", ".pid.tmp", "pid.tmp", ".tmp-pid"] {
        symlink(&victim, dir.join(name)).unwrap();
    }
    let mut command = bundle.command();
    command.args(["run", "--pid-file"]).arg(dir.join("pid"));
    command
        .arg("--bundle")
        .arg(bundle.path())
        .arg(&container.id);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    let written = fs::read_to_string(dir.join("pid")).unwrap();
    assert!(written.parse::<u32>().is_ok(), "{written}");
}

/// A root that is a link is whatever somebody has it lead to just then.
fn root_is_a_link() {
    let container = Container::sh("echo started");
    let links = tempfile::tempdir().unwrap();
    let link = links.path().join("rootfs");
    symlink(container.path(), &link).unwrap();
    // The second name follows the link if it is taken as it is.
    for name in ["rootfs", "rootfs/", "rootfs/."] {
        let bundle = Bundle::with_root(&container, &links.path().join(name));
        let mut command = bundle.command();
        command
            .arg("run")
            .arg("--bundle")
            .arg(bundle.path())
            .arg(&container.id);
        let output = command.output().unwrap();
        assert!(!output.status.success(), "{name}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("symbolic link"), "{name}: {said}");
        assert!(!super::group_exists(&container));
    }
}

/// `HOME` is looked up in the image's `/etc/passwd`, which may be anything: it must neither
/// hang nor eat memory, nor tell what is in the host's files.
fn account_files() {
    let host = tempfile::tempdir().unwrap();
    let passwd = host.path().join("passwd");
    fs::write(&passwd, "root:x:0:0::/of-the-host:/bin/sh\n").unwrap();
    type Make<'a> = &'a dyn Fn(&std::path::Path);
    let make: &[(&str, Make<'_>)] = &[
        ("pipe", &|path| {
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, path, fifo, mode, 0).unwrap();
        }),
        ("endless device", &|path| {
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            let device = rustix::fs::makedev(1, 5);
            let kind = rustix::fs::FileType::CharacterDevice;
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, device).unwrap();
        }),
        ("huge file", &|path| {
            fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
        }),
        ("directory", &|path| fs::create_dir(path).unwrap()),
        ("link to a descriptor", &|path| {
            symlink("/proc/self/fd/3", path).unwrap()
        }),
        ("link to memory", &|path| {
            symlink("/proc/self/mem", path).unwrap()
        }),
        ("link to the log", &|path| {
            symlink("/proc/kmsg", path).unwrap()
        }),
        ("link to the host", &|path| symlink(&passwd, path).unwrap()),
        ("link upwards", &|path| {
            symlink(format!("../../../../../../../..{}", passwd.display()), path).unwrap();
        }),
        ("strange lines", &|path| {
            fs::write(path, b"root:x:0:0::/a\0b:/bin/sh\n\xff\xfe:x:0\n:::::::\n").unwrap();
        }),
    ];
    for (what, make) in make {
        let container = Container::sh("echo $HOME");
        let path = container.path().join("etc/passwd");
        fs::remove_file(&path).unwrap();
        make(&path);
        assert_eq!(container.output(), "/\n", "{what}");
    }
}
