//! The client against a made-up systemd on a socket pair.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use super::bus::Bus;
use super::wire::{Call, FIXED, Value, Writer, message_length};
use super::{SystemdError, version};

/// Plays the other side: takes the authentication, then for each call sends what `answer`
/// makes of its serial. Returns the calls.
fn systemd(answers: Vec<fn(u32) -> Vec<u8>>) -> (UnixStream, JoinHandle<Vec<Vec<u8>>>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut hello = [0; 29];
        theirs.read_exact(&mut hello).unwrap();
        assert_eq!(hello, *b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n");
        theirs
            .write_all(b"DATA\r\nOK 0123456789abcdef\r\n")
            .unwrap();
        let mut calls = Vec::new();
        for answer in answers {
            let mut call = vec![0; FIXED];
            theirs.read_exact(&mut call).unwrap();
            let length = message_length(call.first_chunk().unwrap()).unwrap();
            call.resize(length, 0);
            theirs.read_exact(&mut call[FIXED..]).unwrap();
            let serial = u32::from_ne_bytes([call[8], call[9], call[10], call[11]]);
            theirs.write_all(&answer(serial)).unwrap();
            calls.push(call);
        }
        calls
    });
    (ours, thread)
}

/// A message of systemd's: `fields` are code, type letter and a text or number.
fn message(kind: u8, fields: &[(u8, char, &str)], body: Writer) -> Vec<u8> {
    let body = body.bytes();
    let mut message = Writer::default();
    message.byte(if cfg!(target_endian = "big") {
        b'B'
    } else {
        b'l'
    });
    message.byte(kind);
    message.byte(1);
    message.byte(1);
    message.u32(u32::try_from(body.len()).unwrap());
    message.u32(1000);
    message.array(8, |w| {
        for (code, letter, text) in fields {
            w.align(8);
            for byte in [*code, 1, *letter as u8, 0] {
                w.byte(byte);
            }
            match letter {
                'u' => w.u32(text.parse().unwrap()),
                'g' => {
                    w.byte(u8::try_from(text.len()).unwrap());
                    text.bytes().chain([0]).for_each(|byte| w.byte(byte));
                }
                _ => w.string(text),
            }
        }
    });
    message.align(8);
    let mut message = message.bytes();
    message.extend(body);
    message
}

fn returns(to: u32, signature: &str, body: Writer) -> Vec<u8> {
    message(2, &[(5, 'u', &to.to_string()), (8, 'g', signature)], body)
}

fn job_removed(job: &str, result: &str) -> Vec<u8> {
    let mut body = Writer::default();
    body.u32(5);
    for text in [job, "x.scope", result] {
        body.string(text);
    }
    message(4, &[(3, 's', "JobRemoved"), (8, 'g', "uoss")], body)
}

fn job(to: u32) -> Vec<u8> {
    let mut body = Writer::default();
    body.string("/job/5");
    returns(to, "o", body)
}

#[test]
fn waits_for_its_own_job() {
    // Another's job ends first; ours may end even before its name is known.
    let (stream, thread) = systemd(vec![
        |to| {
            [
                job_removed("/job/4", "failed"),
                job(to),
                job_removed("/job/5", "done"),
            ]
            .concat()
        },
        |to| [job_removed("/job/5", "done"), job(to)].concat(),
        |to| [job(to), job_removed("/job/5", "timeout")].concat(),
    ]);
    let mut bus = Bus::open(stream, true).unwrap();
    let properties = [
        ("Delegate", Value::Bool(true)),
        ("PIDs", Value::U32s(vec![7])),
    ];
    bus.start_transient_unit("x.scope", &properties).unwrap();
    bus.stop_unit("x.scope").unwrap();
    let error = bus.stop_unit("x.scope").unwrap_err();
    assert!(
        matches!(&error, SystemdError::Job { result, .. } if result == "timeout"),
        "{error}"
    );
    let calls = thread.join().unwrap();
    let mut body = Writer::default();
    body.string("x.scope");
    body.string("replace");
    body.properties(&properties);
    body.array(8, |_| {});
    let call = Call {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member: "StartTransientUnit",
        signature: "ssa(sv)a(sa(sv))",
    };
    assert_eq!(calls[0], call.message(1, body));
}

#[test]
fn refusals_are_told() {
    let (stream, thread) = systemd(vec![|to| {
        let mut body = Writer::default();
        body.string("Unit x.scope not loaded.");
        let to = to.to_string();
        let name = "org.freedesktop.systemd1.NoSuchUnit";
        message(3, &[(4, 's', name), (5, 'u', &to), (8, 'g', "s")], body)
    }]);
    let mut bus = Bus::open(stream, true).unwrap();
    let error = bus.stop_unit("x.scope").unwrap_err();
    assert!(error.is(".NoSuchUnit"));
    assert!(error.to_string().contains("not loaded"), "{error}");
    thread.join().unwrap();
    // And then it hangs up.
    let error = bus.stop_unit("x.scope").unwrap_err();
    assert!(
        matches!(error, SystemdError::Closed | SystemdError::Io(_)),
        "{error}"
    );
}

#[test]
fn a_bus_is_greeted_and_asked_for_signals() {
    let nothing: fn(u32) -> Vec<u8> = |to| returns(to, "", Writer::default());
    let (stream, thread) = systemd(vec![nothing, nothing, nothing, |to| {
        let mut body = Writer::default();
        for byte in *b"\x01s\0" {
            body.byte(byte);
        }
        body.string("252.1");
        returns(to, "v", body)
    }]);
    let mut bus = Bus::open(stream, false).unwrap();
    assert_eq!(bus.manager_property("Version").unwrap(), "252.1");
    let calls = thread.join().unwrap();
    for (call, member) in calls.iter().zip(["Hello", "AddMatch", "Subscribe", "Get"]) {
        let found = call
            .windows(member.len())
            .any(|part| part == member.as_bytes());
        assert!(found, "{member}");
    }
}

#[test]
fn versions() {
    for (text, number) in [
        ("252.38-1~deb12u1", 252),
        ("v245.4-1.fc32", 245),
        ("\"249\"", 249),
        ("", 0),
    ] {
        assert_eq!(version(text), number, "{text}");
    }
}
