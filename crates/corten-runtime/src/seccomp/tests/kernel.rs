//! The kernel's own opinion: children load a filter and make harmless calls.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::time::Instant;

use libc::sock_filter;
use proptest::prelude::*;
use serde_json::json;

use super::{NATIVE, data, model, profile};
use crate::ExitStatus;
use crate::seccomp::{Filter, compile};
use crate::sys::{self, Cloned};

/// Calls that do nothing with any arguments, because their first ones are never valid.
const CALLS: &[(&str, i64)] = &[
    ("lseek", libc::SYS_lseek),
    ("dup", libc::SYS_dup),
    ("fchdir", libc::SYS_fchdir),
    ("getpgid", libc::SYS_getpgid),
    ("flock", libc::SYS_flock),
    ("fsync", libc::SYS_fsync),
];

/// A first argument no call takes: bad as a descriptor and as a pid.
const FIRST: u64 = 0xffff_fff7;

/// Runs `body` in a child, whose output is returned with its end.
fn child(body: impl FnOnce(&mut dyn FnMut(&[u8]))) -> (Vec<u8>, ExitStatus) {
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    match sys::clone3(0, None).unwrap() {
        Cloned::Child => {
            // Only this thread exists here, and it takes no locks: no allocation after the
            // clone but by the body, which makes none.
            body(&mut |bytes| {
                rustix::io::write(&theirs, bytes).ok();
            });
            sys::exit_now(0)
        }
        Cloned::Parent { pidfd, .. } => {
            drop(theirs);
            let mut output = Vec::new();
            std::fs::File::from(ours).read_to_end(&mut output).unwrap();
            (output, crate::wait_pidfd(pidfd.as_fd()).unwrap())
        }
    }
}

fn load(filter: &Filter) {
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).unwrap();
    sys::seccomp_load(&filter.program, filter.flags).unwrap();
}

type Sample = (usize, [u64; 3]);

/// What the kernel answers, as errnos (0: success).
fn answers(filter: &Filter, samples: &[Sample]) -> Vec<i32> {
    let (output, status) = child(|say| {
        load(filter);
        for (call, args) in samples {
            let [second, third, fourth] = *args;
            let errno = sys::try_call(CALLS[*call].1, [FIRST, second, third, fourth]);
            say(&errno.to_le_bytes());
        }
    });
    assert_eq!(status, ExitStatus::Exited(0));
    let numbers = output.chunks_exact(4);
    numbers
        .map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

fn a_rule() -> impl Strategy<Value = serde_json::Value> {
    let arg = (
        1..4u32,
        super::word(),
        super::word(),
        proptest::sample::select(super::OPERATORS),
    );
    let arg = arg.prop_map(|(index, value, two, op)| {
        json!({"index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{op}")})
    });
    // Errnos that no call has.
    (
        0..CALLS.len(),
        1000..1100u32,
        proptest::collection::vec(arg, 0..4),
    )
        .prop_map(|(call, errno, args)| {
            json!({"names": [CALLS[call].0], "action": "SCMP_ACT_ERRNO", "errnoRet": errno,
                   "args": args})
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_kernel_agrees_with_the_model(
        rules in proptest::collection::vec(a_rule(), 1..10),
        samples in proptest::collection::vec(
            (0..CALLS.len(), proptest::array::uniform3(super::word())), 32),
    ) {
        let profile = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
        let filter = compile(&profile).unwrap();
        let answers = answers(&filter, &samples);
        prop_assert_eq!(answers.len(), samples.len());
        for ((call, [second, third, fourth]), answer) in samples.iter().zip(answers) {
            let number = u32::try_from(CALLS[*call].1).unwrap();
            let call = data(NATIVE.abis[0].audit, number, &[FIRST, *second, *third, *fourth]);
            let expected = model::outcome(NATIVE, &profile, &call);
            if expected == libc::SECCOMP_RET_ALLOW {
                prop_assert!(answer < 1000, "{:?}: {}", call, answer);
            } else {
                let errno = (expected & libc::SECCOMP_RET_DATA).cast_signed();
                prop_assert_eq!(answer, errno, "{:?}", call);
            }
        }
    }
}

#[test]
fn actions_that_end_the_process() {
    for action in ["KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP"] {
        let profile = profile(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["dup"], "action": format!("SCMP_ACT_{action}")}],
        }));
        let filter = compile(&profile).unwrap();
        let (output, status) = child(|say| {
            load(&filter);
            say(b"before");
            sys::try_call(libc::SYS_dup, [FIRST, 0, 0, 0]);
            say(b"after");
        });
        assert_eq!(output, b"before", "{action}");
        assert_eq!(status, ExitStatus::Signaled(libc::SIGSYS), "{action}");
    }
    // Without a tracer a traced call fails with ENOSYS.
    let profile = profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["dup"], "action": "SCMP_ACT_TRACE", "errnoRet": 5}],
    }));
    let filter = compile(&profile).unwrap();
    assert_eq!(answers(&filter, &[(1, [0; 3])]), [libc::ENOSYS]);
}

/// The kernel takes the whole of every profile we ship.
#[test]
fn the_default_profile_loads() {
    for capabilities in [
        crate::defaults::capabilities(),
        crate::defaults::all_capabilities(),
    ] {
        let filter = compile(&crate::defaults::seccomp(&capabilities)).unwrap();
        // AF_ALG and AF_VSOCK are refused, AF_UNIX is not (and fails for its type).
        let (output, status) = child(|say| {
            load(&filter);
            for domain in [38, 40, 1] {
                say(&sys::try_call(libc::SYS_socket, [domain, 9999, 0, 0]).to_le_bytes());
            }
        });
        assert_eq!(status, ExitStatus::Exited(0));
        let expected: Vec<u8> = [libc::EPERM, libc::EPERM, libc::EINVAL]
            .iter()
            .flat_map(|errno| errno.to_le_bytes())
            .collect();
        assert_eq!(output, expected);
    }
}

/// What the kernel needs to load the program, and for one call under it.
pub(super) fn print_cost_of_loading(program: &[sock_filter]) {
    let (output, _) = child(|say| {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).unwrap();
        let start = Instant::now();
        sys::seccomp_load(program, 0).unwrap();
        say(&start.elapsed().as_nanos().to_le_bytes()[..8]);
        for (number, args) in [
            (libc::SYS_getppid, [0; 4]),
            (libc::SYS_socket, [38, 0, 0, 0]),
        ] {
            let start = Instant::now();
            for _ in 0..1_000_000 {
                sys::try_call(number, args);
            }
            say(&(start.elapsed().as_nanos() / 1_000_000).to_le_bytes()[..8]);
        }
    });
    let numbers: Vec<u64> = output
        .chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    println!(
        "load {} µs; getppid (remembered) {} ns; socket(AF_ALG) (refused by argument) {} ns",
        numbers[0] as f64 / 1000.0,
        numbers[1],
        numbers[2]
    );
}
