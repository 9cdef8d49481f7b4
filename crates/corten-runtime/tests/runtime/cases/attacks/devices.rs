//! Device nodes: where they are made, whose they are, and what can be opened.

use std::os::unix::fs::{FileTypeExt as _, chown, symlink};

use serde_json::json;

use super::{in_user_namespace, without_dev};
use crate::Case;
use crate::support::Container;

pub const CASES: &[Case] = &[
    ("attack_device_nodes_outside", device_nodes_outside),
    ("attack_device_of_the_host", device_of_the_host),
];

/// A node's name leads out of the root, or through a link of the image into a volume of
/// the host: nothing is made there.
fn device_nodes_outside() {
    let outside = tempfile::tempdir().unwrap();
    let there = outside.path().to_str().unwrap();
    let node = |path: &str| json!([{"path": path, "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 7, "gid": 8}]);
    let up = format!("/dev/../../../../../../../../{there}/up");
    let link = |container: &Container, name: &str, target: &str| {
        symlink(target, container.path().join(name)).unwrap();
    };
    // Lexically inside, so it is made there: inside.
    let container = Container::sh("true").set("/linux/devices", node(&up));
    container.output();
    let inside = container
        .path()
        .join(there.trim_start_matches('/'))
        .join("up");
    let made = std::fs::metadata(inside).unwrap();
    assert!(made.file_type().is_char_device());
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 7);
    // Through links: refused, also if they lead into what is bound from the host.
    for (name, target, device) in [
        ("sub", there, "/sub/node"),
        ("sub", "/vol", "/sub/node"),
        ("sub", "../../../../vol", "/sub/deeper/node"),
        ("dev", "/vol", "/dev/node"),
    ] {
        let mut container = Container::sh("true")
            .mount("/vol", "bind", there, &["rbind", "rw"])
            .set("/linux/devices", node(device));
        if name == "dev" {
            std::fs::remove_dir(container.path().join("dev")).unwrap();
            // Or the fresh /dev would be mounted at the end of the link, and then covered.
            container = without_dev(container);
        }
        link(&container, name, target);
        let error = container.run().unwrap_err().to_string();
        assert!(
            error.contains("/dev") || error.contains(device),
            "{device}: {error}"
        );
        let found: Vec<_> = std::fs::read_dir(outside.path()).unwrap().collect();
        assert!(found.is_empty(), "{device}: {found:?}");
    }
    // In a user namespace, where the host's nodes are bound: a link would be followed to a
    // file in the volume, or make one.
    chown(outside.path(), Some(100_000), Some(100_000)).unwrap();
    for (target, device) in [
        ("/vol/planted", "/dev/null"),
        ("../vol/planted", "/dev/null"),
        ("/vol/planted", "/dev/node"),
        ("/vol", "/dev/sub/node"),
    ] {
        let container = in_user_namespace(without_dev(Container::sh("true")))
            .mount("/vol", "bind", there, &["rbind", "rw"])
            .set("/linux/devices", node(device));
        let name = device.strip_suffix("/node").filter(|name| *name != "/dev");
        link(
            &container,
            name.unwrap_or(device).trim_start_matches('/'),
            target,
        );
        let error = container.run().unwrap_err().to_string();
        assert!(error.contains(device), "{device}: {error}");
        let found: Vec<_> = std::fs::read_dir(outside.path()).unwrap().collect();
        assert!(found.is_empty(), "{device}: {found:?}");
    }
    // A node of the image's own is taken only if it is that very device, and no link to it.
    let container = Container::sh("true").set("/linux/devices", node("/made/node"));
    std::fs::create_dir(container.path().join("made")).unwrap();
    link(&container, "made/node", "/etc/passwd");
    let error = container.run().unwrap_err().to_string();
    assert!(error.contains("/made/node"), "{error}");
}

/// `CAP_MKNOD` is Docker's default: a node of the host's disk, memory or log may be made;
/// opening it is refused by the device filter.
fn device_of_the_host() {
    let script = "mknod /tmp/d $1 $2 $3 && head -c 1 /tmp/d > /dev/null && echo opened";
    let run = |kind: &str, major: &str, minor: &str, rules: Option<serde_json::Value>| {
        let mut container = Container::args(&["sh", "-c", script, "sh", kind, major, minor]);
        if let Some(rules) = rules {
            container = container.set("/linux/resources/devices", rules);
        }
        container.run().unwrap()
    };
    for (kind, major, minor) in [
        ("b", "7", "0"),
        ("b", "254", "0"),
        ("c", "1", "1"),
        ("c", "1", "11"),
        ("c", "10", "229"),
    ] {
        let outcome = run(kind, major, minor, None);
        assert!(
            outcome.stderr.contains("Operation not permitted"),
            "{kind} {major}: {outcome:?}"
        );
    }
    // The positive control: with a rule for it, zero's twin is opened.
    let rule = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 7, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]);
    assert_eq!(run("c", "1", "7", Some(rule)).stdout, "opened\n");
}
