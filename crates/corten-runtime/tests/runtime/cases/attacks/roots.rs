//! A root that is not pivoted to (`--no-pivot`), only changed to: the host's lies below it
//! in the same mount namespace, and must stay out of reach.

use serde_json::json;

use super::{Bundle, almighty, attacker};
use crate::Case;
use crate::support::Container;

pub const CASES: &[Case] = &[
    ("attack_climb_out_of_no_pivot", climb_out_of_no_pivot),
    ("attack_fresh_procfs_in_no_pivot", fresh_procfs_in_no_pivot),
];

const NO_PIVOT: &[&str] = &["--no-pivot"];

fn said(container: &Container, flags: &[&str]) -> String {
    let output = Bundle::new(container).run(flags);
    assert!(output.status.success(), "{flags:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The way out of every `chroot`: a directory outside kept open, another root below it, and
/// up. It leads out of the attacker's own change of root, and no further.
fn climb_out_of_no_pivot() {
    for flags in [&[][..], NO_PIVOT] {
        let found = said(&attacker(&["climb"]), flags);
        assert_eq!(found, "climbed\nto the container's root\n", "{flags:?}");
    }
    // What is mounted is the container's, and all of it is there.
    let script = "grep -c . /proc/self/mountinfo; ls -d /bin/busybox /proc/self /sys/kernel; \
                  echo $$; stat -c %t:%T /dev/null";
    let expected = said(&Container::sh(script), &[]);
    assert_eq!(said(&Container::sh(script), NO_PIVOT), expected);
}

/// The kernel lets a user namespace mount procfs anew, without the container's masks, if
/// there is one without masks in its mount namespace: the host's must not be that.
fn fresh_procfs_in_no_pivot() {
    let script = "unshare -U -r -m -p -f sh -c \"$1\" 2>/dev/null && echo got through; true";
    let mount = |what: &str| {
        let inside = format!("mount -t {what} {what} /tmp && ls -d /tmp/kernel /tmp/keys | grep .");
        almighty(Container::args(&["sh", "-c", script, "sh", &inside]))
    };
    for what in ["proc", "sysfs"] {
        for flags in [&[][..], NO_PIVOT] {
            assert_eq!(said(&mount(what), flags), "", "{what} {flags:?}");
        }
    }
    // The positive control: without masks there is nothing to get around.
    let bare = mount("proc")
        .set("/linux/maskedPaths", json!([]))
        .set("/linux/readonlyPaths", json!([]));
    let found = said(&bare, NO_PIVOT);
    assert!(found.ends_with("got through\n"), "{found}");
}
