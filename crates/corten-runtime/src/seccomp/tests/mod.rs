//! Tests: the compiler against a plain reading of the profile ([`model`]), through an interpreter
//! of BPF ([`interpreter`]) and through the kernel itself ([`kernel`]).

mod cost;
mod interpreter;
mod kernel;
mod model;

use corten_oci::runtime_spec::LinuxSeccomp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::calls::{ARM, Machine, NATIVE, X32_BIT, X86};
use super::{Filter, compile, program};
use crate::defaults;
use crate::error::RuntimeError;
use interpreter::{Data, run};

fn profile(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const EABI: u32 = 0x4000_0028;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

fn data(arch: u32, number: u32, args: &[u64]) -> Data {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Data {
        number,
        arch,
        args: all,
    }
}

/// Some names of each kind: common, rare, multiplexed, of some ABIs only, of none.
const NAMES: &[&str] = &[
    "read",
    "write",
    "openat",
    "close",
    "socket",
    "socketcall",
    "ipc",
    "shmat",
    "bind",
    "clone",
    "clone3",
    "personality",
    "getpid",
    "mmap2",
    "arch_prctl",
    "set_tls",
    "execve",
    "ioctl",
    "cachestat",
    "listns",
    "nosuchcall",
    "chown32",
    "semop",
    "uretprobe",
    "futex",
    "exit_group",
];
const ACTIONS: &[&str] = &[
    "ALLOW",
    "ERRNO",
    "KILL",
    "KILL_THREAD",
    "KILL_PROCESS",
    "TRAP",
    "TRACE",
    "LOG",
    "NOTIFY",
];
const OPERATORS: &[&str] = &["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
const ARCHES: &[&str] = &[
    "NATIVE", "X86", "X86_64", "X32", "ARM", "AARCH64", "MIPS", "S390X", "RISCV64",
];

/// Words near what matters: small, at the edges of halves, large.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..6u64,
        1 => any::<u32>().prop_map(u64::from),
        1 => any::<u64>(),
        2 => (0..3u64, 0..3u64).prop_map(|(high, low)| high << 32 | low),
        1 => (0..3u64).prop_map(|n| 0xffff_fffe + n),
        1 => (0..3u64).prop_map(|n| u64::MAX - n),
        1 => Just(0x7e02_0000),
    ]
}

fn errno(action: &str) -> BoxedStrategy<Option<u32>> {
    if ["ERRNO", "TRACE"].contains(&action) {
        proptest::option::of(prop_oneof![0..200u32, Just(0xffff)]).boxed()
    } else {
        Just(None).boxed()
    }
}

fn an_action(actions: &'static [&'static str]) -> impl Strategy<Value = (String, Option<u32>)> {
    proptest::sample::select(actions).prop_flat_map(|action| {
        errno(action).prop_map(move |errno| (format!("SCMP_ACT_{action}"), errno))
    })
}

fn a_rule() -> impl Strategy<Value = Value> {
    let arg = (0..6u32, word(), word(), proptest::sample::select(OPERATORS)).prop_map(
        |(index, value, two, op)| {
            // Few arguments, so that they repeat.
            json!({"index": index / 2, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{op}")})
        },
    );
    let args = prop_oneof![
        1 => Just(Vec::new()),
        2 => proptest::collection::vec(arg, 1..4),
    ];
    let names = proptest::collection::vec(proptest::sample::select(NAMES), 1..4);
    (names, an_action(ACTIONS), args).prop_map(|(mut names, (action, errno), args)| {
        if action == "SCMP_ACT_NOTIFY" {
            names.retain(|name| *name != "write");
        }
        let mut rule = json!({"names": names, "action": action, "args": args});
        if let Some(errno) = errno {
            rule["errnoRet"] = errno.into();
        }
        rule
    })
}

fn a_profile() -> impl Strategy<Value = LinuxSeccomp> {
    let arches = proptest::collection::vec(proptest::sample::select(ARCHES), 0..5);
    // Not NOTIFY, which is refused as default.
    let default = an_action(ACTIONS.split_last().unwrap().1);
    let rules = proptest::collection::vec(a_rule(), 0..12);
    (default, arches, rules).prop_map(|((action, errno), arches, rules)| {
        let arches: Vec<_> = arches
            .iter()
            .map(|arch| format!("SCMP_ARCH_{arch}"))
            .collect();
        let mut value = json!({
            "defaultAction": action, "architectures": arches, "syscalls": rules,
            "listenerPath": "/agent",
        });
        if let Some(errno) = errno {
            value["defaultErrnoRet"] = errno.into();
        }
        profile(value)
    })
}

/// A call that some rule is about, more often than not.
fn a_call(machine: &'static Machine) -> impl Strategy<Value = Data> {
    let arches: Vec<u32> = machine
        .abis
        .iter()
        .map(|abi| abi.audit)
        .chain([0x8000_0016])
        .collect();
    let named = proptest::sample::select(NAMES).prop_map(move |name| {
        let row = machine.row(name);
        let numbers = machine.abis.iter().flat_map(|abi| {
            let calls = machine.calls(abi);
            calls
                .filter(|call| Some(call.1) == row)
                .map(|call| abi.base + call.0)
        });
        numbers.collect::<Vec<_>>()
    });
    let number = (named, any::<proptest::sample::Index>(), 0..600u32, 0..12u32).prop_map(
        |(named, which, other, kind)| match kind {
            0 => other,
            1 => X32_BIT + other,
            2 => u32::MAX,
            3 => 0xf_0000 + other % 8,
            _ if named.is_empty() => other,
            _ => named[which.index(named.len())],
        },
    );
    let args = proptest::array::uniform6(word());
    (proptest::sample::select(arches), number, args).prop_map(|(arch, number, args)| Data {
        number,
        arch,
        args,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn agrees_with_the_model_on_x86(profile in a_profile(),
                                    calls in proptest::collection::vec(a_call(&X86), 24)) {
        agree(&X86, &profile, &calls)?;
    }

    #[test]
    fn agrees_with_the_model_on_arm(profile in a_profile(),
                                    calls in proptest::collection::vec(a_call(&ARM), 24)) {
        agree(&ARM, &profile, &calls)?;
    }
}

fn agree(
    machine: &'static Machine,
    profile: &LinuxSeccomp,
    calls: &[Data],
) -> Result<(), TestCaseError> {
    let program = program(machine, profile).unwrap();
    for call in calls {
        let expected = model::outcome(machine, profile, call);
        prop_assert_eq!(run(&program, call), expected, "{:?}", call);
    }
    Ok(())
}

/// Docker's profile for every number there is, and beyond; with interesting arguments where
/// it looks at them.
#[test]
fn agrees_with_the_model_on_the_default_profile() {
    let profile = defaults::seccomp(&defaults::capabilities());
    let program = program(&X86, &profile).unwrap();
    let agree = |call: Data| {
        let expected = model::outcome(&X86, &profile, &call);
        assert_eq!(run(&program, &call), expected, "{call:?}");
    };
    for arch in [X86_64, I386] {
        for number in (0..480).chain([u32::MAX]) {
            agree(data(arch, number, &[]));
        }
    }
    for number in 0..560 {
        agree(data(X86_64, X32_BIT + number, &[]));
    }
    // socket, clone, personality.
    for (arch, number) in [
        (X86_64, 41),
        (X86_64, 56),
        (X86_64, 135),
        (I386, 359),
        (I386, 120),
        (X86_64, X32_BIT + 41),
    ] {
        for first in [
            0,
            1,
            8,
            9,
            37,
            38,
            39,
            40,
            41,
            0x0200_0000,
            0x2_0008,
            0xffff_ffff,
            1 << 32,
            u64::MAX,
        ] {
            agree(data(arch, number, &[first]));
        }
    }
}

#[test]
fn architectures() {
    let ask = |machine, value: Value, arch, number| {
        let program = program(machine, &profile(value)).unwrap();
        run(&program, &data(arch, number, &[]))
    };
    let deny = |arches: Value| {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": arches,
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO"}],
        })
    };
    // The native one is covered whatever is listed, others are killed unless listed.
    for arches in [
        json!(null),
        json!([]),
        json!(["SCMP_ARCH_AARCH64"]),
        json!(["SCMP_ARCH_NATIVE"]),
    ] {
        assert_eq!(ask(&X86, deny(arches.clone()), X86_64, 0), EPERM);
        assert_eq!(ask(&X86, deny(arches.clone()), I386, 3), super::BAD_ARCH);
        // x32 is no way around a filter for x86-64, but "no call at all" is harmless.
        assert_eq!(
            ask(&X86, deny(arches.clone()), X86_64, X32_BIT),
            super::BAD_ARCH
        );
        assert_eq!(ask(&X86, deny(arches), X86_64, u32::MAX), ALLOW);
    }
    let all = json!(["SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    assert_eq!(ask(&X86, deny(all.clone()), I386, 3), EPERM);
    assert_eq!(ask(&X86, deny(all.clone()), I386, 0), ALLOW);
    assert_eq!(ask(&X86, deny(all.clone()), X86_64, X32_BIT), EPERM);
    assert_eq!(ask(&X86, deny(all), X86_64, X32_BIT + 1), ALLOW);
    assert_eq!(
        ask(&ARM, deny(json!(["SCMP_ARCH_ARM"])), AARCH64, 63),
        EPERM
    );
    assert_eq!(ask(&ARM, deny(json!(["SCMP_ARCH_ARM"])), EABI, 3), EPERM);
    assert_eq!(ask(&ARM, deny(json!([])), EABI, 3), super::BAD_ARCH);
}

#[test]
fn numbers_newer_than_the_profile() {
    let ask = |default: &str, names: &[&str], number| {
        let value = json!({
            "defaultAction": default,
            "syscalls": [{"names": names, "action": "SCMP_ACT_LOG"}],
        });
        run(
            &program(&X86, &profile(value)).unwrap(),
            &data(X86_64, number, &[]),
        )
    };
    let refusing = ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"];
    for default in refusing {
        // openat2 is 437.
        assert_eq!(ask(default, &["read", "openat2"], 438), ENOSYS);
        assert_ne!(ask(default, &["read", "openat2"], 436), ENOSYS);
        assert_ne!(ask(default, &[], 438), ENOSYS);
        assert_ne!(ask(default, &["nosuchcall"], 438), ENOSYS);
    }
    assert_eq!(ask("SCMP_ACT_ALLOW", &["read", "openat2"], 438), ALLOW);
    assert_eq!(
        ask("SCMP_ACT_TRACE", &["openat2"], 438),
        libc::SECCOMP_RET_TRACE | 1
    );
}

/// What a rule about `socket` means for i386 programs that use `socketcall`.
#[test]
fn multiplexed_calls() {
    let ask = |default: &str, action: &str, args: Value, selector: u64| {
        let value = json!({
            "defaultAction": default, "architectures": ["SCMP_ARCH_X86"],
            "syscalls": [{"names": ["socket"], "action": action, "args": args},
                         {"names": ["statx"], "action": "SCMP_ACT_LOG"}],
        });
        let program = program(&X86, &profile(value)).unwrap();
        run(&program, &data(I386, 102, &[selector]))
    };
    let vsock = json!([{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]);
    let (allow, errno) = ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO");
    assert_eq!(ask(allow, errno, json!([]), 1), EPERM);
    assert_eq!(ask(allow, errno, json!([]), 2), ALLOW);
    assert_eq!(ask(errno, allow, json!([]), 1), ALLOW);
    assert_eq!(ask(errno, allow, json!([]), 2), EPERM);
    // What cannot be checked is refused.
    assert_eq!(ask(allow, errno, vsock.clone(), 1), EPERM);
    assert_eq!(ask(errno, allow, vsock, 1), EPERM);
}

#[test]
fn flags() {
    let flags = |flags: Value, action: &str| {
        let value = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "flags": flags, "listenerPath": "/agent",
            "syscalls": [{"names": ["mkdir"], "action": action}],
        });
        compile(&profile(value)).unwrap().flags
    };
    let all = json!([
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ]);
    assert_eq!(
        flags(json!(null), "SCMP_ACT_ERRNO"),
        libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
    );
    assert_eq!(flags(json!([]), "SCMP_ACT_ERRNO"), 0);
    assert_eq!(flags(all.clone(), "SCMP_ACT_ERRNO"), 0b110);
    assert_eq!(flags(all, "SCMP_ACT_NOTIFY"), 0b10_1110);
    assert_eq!(
        flags(json!([]), "SCMP_ACT_NOTIFY"),
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
    );
}

#[test]
fn what_is_refused() {
    let refused = |value: Value| match compile(&profile(value)) {
        Err(RuntimeError::Spec { field, reason }) => format!("{field}: {reason}"),
        other => panic!("{other:?}"),
    };
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let table = [
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
            "linux.seccomp.defaultErrnoRet: SCMP_ACT_ALLOW takes no errno",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_TRAP", "errnoRet": 1})),
            "linux.seccomp.syscalls.errnoRet: SCMP_ACT_TRAP takes no errno",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 65536})),
            "linux.seccomp.syscalls.errnoRet: 65536 does not fit into 16 bits",
        ),
        (
            rule(json!({"names": [""], "action": "SCMP_ACT_ERRNO"})),
            "linux.seccomp.syscalls.names: an empty name is no system call",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO",
                        "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
            "linux.seccomp.syscalls.args.index: is 6 (system calls have six arguments)",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}),
            "linux.seccomp.listenerMetadata: is set without a listenerPath",
        ),
    ];
    for (value, message) in table {
        assert_eq!(refused(value), message);
    }
}

/// A profile too large for the kernel is an error, not a panic and not a cut.
#[test]
fn too_large() {
    let args = |n: u64| {
        json!([{"index": 0, "value": n * 3, "op": "SCMP_CMP_EQ"},
               {"index": 1, "value": n, "op": "SCMP_CMP_NE"}])
    };
    let rules: Vec<_> = (0..1000)
        .map(|n| json!({"names": ["ioctl"], "action": "SCMP_ACT_LOG", "args": args(n)}))
        .collect();
    let value = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules});
    let error = compile(&profile(value)).unwrap_err().to_string();
    assert!(
        error.contains("4096 instructions that the kernel takes"),
        "{error}"
    );
}

/// The default profile stays small, and often made calls are decided soon.
#[test]
fn the_default_program_is_short() {
    let profile = defaults::seccomp(&defaults::capabilities());
    let Filter { program, .. } = compile(&profile).unwrap();
    assert!(program.len() < 340, "{} instructions", program.len());
    let steps =
        |number: u32| interpreter::steps(&program, &data(NATIVE.abis[0].audit, number, &[]));
    let read = if cfg!(target_arch = "aarch64") { 63 } else { 0 };
    assert!(steps(read) <= 10, "{}", steps(read));
    let most = (0..480).map(steps).max().unwrap();
    assert!(most <= 24, "{most}");
}
