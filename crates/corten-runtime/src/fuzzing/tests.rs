//! Mutated documents: none may panic, and what is accepted stays inside.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

use super::*;

/// A document that uses what there is.
fn everything() -> Value {
    let mut spec = serde_json::to_value(crate::defaults::spec(vec!["true".into()])).unwrap();
    let process = json!({
        "terminal": true, "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]},
        "oomScoreAdj": 5, "noNewPrivileges": true,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
        "scheduler": {"policy": "SCHED_OTHER", "nice": 3, "priority": 0},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        "execCPUAffinity": {"initial": "0", "final": "0-1"},
    });
    let linux = json!({
        "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "100"},
        "cgroupsPath": "/rehearsal/c1",
        "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 65536}],
        "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 65536}],
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229,
                     "fileMode": 438, "uid": 0, "gid": 0}],
        "rootfsPropagation": "rslave", "mountLabel": "",
        "personality": {"domain": "LINUX32"},
        "resources": {
            "devices": [{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}],
            "memory": {"limit": 1_000_000, "swap": 2_000_000, "reservation": 1000, "swappiness": 5},
            "cpu": {"shares": 100, "quota": 1000, "period": 1000, "cpus": "0-1", "mems": "0"},
            "pids": {"limit": 10},
            "blockIO": {"weight": 10, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 5}],
            "network": {"classID": 5, "priorities": [{"name": "lo", "priority": 1}]},
            "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 4}},
            "unified": {"memory.high": "5"},
        },
    });
    merge(&mut spec["process"], process);
    merge(&mut spec["linux"], linux);
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    spec["domainname"] = json!("example.org");
    spec["annotations"] = json!({"a": "b"});
    spec["hooks"] = json!({"prestart": [{"path": "/bin/true", "args": ["x"], "env": ["A=b"],
                                         "timeout": 5}]});
    spec
}

fn merge(into: &mut Value, more: Value) {
    let (Value::Object(into), Value::Object(more)) = (into, more) else {
        return;
    };
    into.extend(more);
}

/// Values that are awkward in one way or another.
const STRINGS: &[&str] = &[
    "",
    "/",
    "..",
    "../..",
    "/../../etc",
    "a\0b",
    "\u{0}",
    "/proc/self/fd/3",
    "%s%n",
    "-1",
    "rbind",
    "size=",
    "=",
    "mode=99999999999",
    "idmap",
    "shared",
    "kernel.core_pattern",
    "net..x",
    "net/../kernel/core_pattern",
    "fs.mqueue./../x",
    "kernel.shm_rmid_forced/../../core_pattern",
    "0-99999999999",
    "18446744073709551615",
    "0-4294967295",
    "memory.max",
    "../memory.max",
    "cgroup.procs",
    "a:b:c",
    "\u{1f600}",
    "\n",
    "SCMP_ACT_TRACE",
    "x86",
    "1.2.99999999999999999999",
];

const NUMBERS: &[i64] = &[
    0,
    1,
    -1,
    4096,
    65535,
    65536,
    0x7fff_ffff,
    i64::MAX,
    i64::MIN,
];

fn awkward() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => select(STRINGS).prop_map(Value::from),
        1 => "[a-z./:=,0-9-]{0,12}".prop_map(Value::from),
        1 => Just("x".repeat(70_000)).prop_map(Value::from),
        3 => select(NUMBERS)
            .prop_map(Value::from),
        1 => Just(Value::from(u64::MAX)),
        1 => Just(Value::from(u32::MAX)),
        1 => Just(Value::from(1.5)),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(json!([])),
        1 => Just(json!({})),
    ]
}

/// What is done to one place of the document.
#[derive(Debug, Clone)]
enum Mutation {
    Replace(Index, Value),
    Remove(Index),
    /// Adds what stands there once more (arrays), or under another name (objects).
    Repeat(Index, &'static str),
    /// A key (of a map: a sysctl, a v2 file) becomes another.
    Rename(Index, &'static str),
}

fn a_mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        6 => (any::<Index>(), awkward()).prop_map(|(at, value)| Mutation::Replace(at, value)),
        1 => any::<Index>().prop_map(Mutation::Remove),
        1 => (any::<Index>(), select(STRINGS)).prop_map(|(at, name)| Mutation::Repeat(at, name)),
        2 => (any::<Index>(), select(STRINGS)).prop_map(|(at, name)| Mutation::Rename(at, name)),
    ]
}

/// The pointers of all values, outermost first.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                places(item, &format!("{at}/{index}"), all);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                places(item, &format!("{at}/{}", escaped(key)), all);
            }
        }
        _ => {}
    }
}

fn mutate(document: &mut Value, mutation: &Mutation) {
    let mut all = Vec::new();
    places(document, "", &mut all);
    // The long lists of system calls are only a part of what there is to try.
    all.retain(|place| !place.contains("/syscalls/0/names/"));
    let (Mutation::Replace(at, _)
    | Mutation::Remove(at)
    | Mutation::Repeat(at, _)
    | Mutation::Rename(at, _)) = mutation;
    let place = at.get(&all).clone();
    let Some(target) = document.pointer_mut(&place) else {
        return;
    };
    let copy = target.clone();
    if let Mutation::Replace(_, value) = mutation {
        *target = value.clone();
        return;
    }
    let Some((parent, key)) = place.rsplit_once('/') else {
        return;
    };
    let key = key.replace("~1", "/").replace("~0", "~");
    match (document.pointer_mut(parent), mutation) {
        (Some(Value::Object(map)), Mutation::Repeat(_, name)) => {
            map.insert((*name).to_owned(), copy);
        }
        (Some(Value::Object(map)), Mutation::Rename(_, name)) => {
            map.remove(&key);
            map.insert((*name).to_owned(), copy);
        }
        (Some(Value::Object(map)), _) => drop(map.remove(&key)),
        (Some(Value::Array(items)), Mutation::Remove(_)) => {
            items.remove(key.parse().unwrap());
        }
        (Some(Value::Array(items)), _) => items.push(copy),
        _ => {}
    }
}

/// The unmutated document is accepted up to what only the machine can refuse: otherwise
/// the mutants would all fail at the same early check.
#[test]
fn the_document_reaches_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let text = everything().to_string();
    if let Err(reason) = config(text.as_bytes(), dir.path()) {
        assert!(!reason.contains("invalid spec"), "{reason}");
    }
    let spec: Spec = serde_json::from_value(everything()).unwrap();
    assert_eq!(sysctls(&spec).unwrap().len(), 2);
    resources(spec.linux().as_ref().unwrap().resources().as_ref().unwrap()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn configurations(mutations in proptest::collection::vec(a_mutation(), 1..4)) {
        let mut document = everything();
        for mutation in &mutations {
            mutate(&mut document, mutation);
        }
        let dir = tempfile::tempdir().unwrap();
        let outcome = config(document.to_string().as_bytes(), dir.path());
        if let Err(reason) = outcome {
            prop_assert!(!reason.is_empty());
            prop_assert!(!reason.contains('\n') || document.to_string().contains("\\n"), "{}", reason);
        }
        // Nothing was made.
        prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        if let Ok(spec) = serde_json::from_value::<Spec>(document)
            && let Ok(files) = sysctls(&spec)
        {
            for file in files {
                prop_assert!(stays_inside(&file), "{}", file);
            }
        }
    }

    #[test]
    fn processes(mutations in proptest::collection::vec(a_mutation(), 1..4)) {
        let mut document = everything()["process"].take();
        for mutation in &mutations {
            mutate(&mut document, mutation);
        }
        process(document.to_string().as_bytes()).ok();
    }

    #[test]
    fn bytes(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempfile::tempdir().unwrap();
        config(&text, dir.path()).ok();
        process(&text).ok();
    }

    #[test]
    fn cgroup_paths(given in "[a-z./:\\\\ -]{0,24}") {
        if let Ok(path) = cgroup_path(&given) {
            prop_assert!(!path.is_empty() && !path.starts_with('/'), "{}", path);
            prop_assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{}", path);
        }
    }

    #[test]
    fn options_of_mounts(options in proptest::collection::vec(
        prop_oneof![select(STRINGS).prop_map(str::to_owned), "[a-z=,0-9]{0,16}"], 0..8)) {
        mount_options(&options).ok();
    }
}

/// A sysctl of a namespace, named plainly.
fn stays_inside(file: &str) -> bool {
    let plain = file.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let namespaced = [
        "net/",
        "fs/mqueue/",
        "kernel/msg",
        "kernel/sem",
        "kernel/shm",
    ]
    .iter()
    .any(|prefix| {
        file.strip_prefix("sys/")
            .is_some_and(|file| file.starts_with(prefix))
    });
    let names = ["sys/kernel/domainname", "sys/kernel/hostname"].contains(&file);
    plain && (namespaced || names)
}
