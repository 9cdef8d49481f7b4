//! A container's first process: starts the program named by its arguments (after `--`), passes
//! signals on to it, reaps whatever is orphaned, and ends with the program's status (128 + N
//! when signal N ended it).
//!
//! No library and no allocation: system calls, and the stack the kernel gives. Compiled by
//! `build.rs`, on its own. It runs with the rights of the container's program, and knows
//! nothing but its arguments and environment.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "mov %rsp, %rdi",
    "and $-16, %rsp",
    "call {main}",
    "ud2",
    main = sym main,
    options(att_syntax)
);
#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, #0",
    "mov x30, #0",
    "mov x0, sp",
    "bl {main}",
    "brk #1",
    main = sym main
);

/// Numbers of system calls.
#[cfg(target_arch = "x86_64")]
mod number {
    pub const WRITE: usize = 1;
    pub const SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const GETPID: usize = 39;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const SETPGID: usize = 109;
    pub const SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const IOCTL: usize = 29;
    pub const WRITE: usize = 64;
    pub const EXIT_GROUP: usize = 94;
    pub const KILL: usize = 129;
    pub const SIGPROCMASK: usize = 135;
    pub const SIGTIMEDWAIT: usize = 137;
    pub const SETPGID: usize = 154;
    pub const GETPID: usize = 172;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const WAIT4: usize = 260;
}

const ENOENT: isize = 2;
const EINTR: isize = 4;
const EACCES: isize = 13;
const ENOTDIR: isize = 20;

const SIGCHLD: usize = 17;
/// What the kernel sends for a fault of this process itself, and for terminals: not to be
/// passed on. ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS.
const OWN: u64 = bit(4) | bit(5) | bit(6) | bit(7) | bit(8) | bit(11) | bit(31);

const BLOCK: usize = 0;
const SET: usize = 2;
const NOHANG: usize = 1;
const SET_FOREGROUND: usize = 0x5410;

/// Longest path that a program is looked for under.
const LONGEST: usize = 4096;

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// # Safety
/// What the arguments point to must be as the call wants it.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result;
    // SAFETY: the kernel's calling convention; the caller answers for the arguments.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result
}

/// # Safety
/// What the arguments point to must be as the call wants it.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result;
    // SAFETY: the kernel's calling convention; the caller answers for the arguments.
    unsafe {
        asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") a as isize => result,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            options(nostack)
        );
    }
    result
}

/// The arguments and the environment as the kernel has put them on the stack.
#[derive(Clone, Copy)]
struct Words {
    /// The program's own arguments, ended by a null pointer.
    args: *const *const u8,
    environment: *const *const u8,
}

/// # Safety
/// `stack` is the stack pointer at the process's start.
unsafe extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: at the start the stack holds the number of arguments, pointers to them, null,
    // pointers to the environment, null.
    let words = unsafe {
        let count = *stack;
        let first = stack.add(1).cast::<*const u8>();
        let skipped = if count > 1 && is(*first.add(1), b"--\0") { 2 } else { 1 };
        if skipped >= count {
            say(&[b"init: no program to execute\n"]);
            exit(127);
        }
        Words {
            args: first.add(skipped),
            environment: first.add(count + 1),
        }
    };
    let all: u64 = !OWN;
    let mut before: u64 = 0;
    // SAFETY: both sets are as long as said.
    let child = unsafe {
        let (all, before) = (&raw const all as usize, &raw mut before as usize);
        call(number::SIGPROCMASK, BLOCK, all, before, 8, 0);
        call(number::CLONE, SIGCHLD, 0, 0, 0, 0)
    };
    match child {
        0 => execute(words, before),
        child if child > 0 => watch(child as usize, all),
        _ => {
            say(&[b"init: cannot make a process\n"]);
            exit(126)
        }
    }
}

/// Passes signals on until the child has ended.
fn watch(child: usize, signals: u64) -> ! {
    loop {
        // SAFETY: the set is as long as said; nothing is to be told of the signal.
        let signal = unsafe {
            let set = &raw const signals as usize;
            call(number::SIGTIMEDWAIT, set, 0, 0, 8, 0)
        };
        match signal {
            signal if signal == SIGCHLD as isize => reap(child),
            signal if signal > 0 => {
                // SAFETY: numbers only. The child may have ended: then it is reaped next.
                unsafe { call(number::KILL, child, signal as usize, 0, 0, 0) };
            }
            _ => {}
        }
    }
}

/// Takes in all that have ended; ends itself when the child is one of them.
fn reap(child: usize) {
    loop {
        let mut status: i32 = 0;
        // SAFETY: the status is written where said.
        let ended = unsafe {
            let status = &raw mut status as usize;
            call(number::WAIT4, usize::MAX, status, NOHANG, 0, 0)
        };
        if ended == child as isize {
            let signal = status & 0x7f;
            exit(if signal == 0 { (status >> 8) & 0xff } else { 128 + signal });
        }
        if ended <= 0 && ended != -EINTR {
            return;
        }
    }
}

/// In the child: a process group of its own, which has the terminal if there is one, the
/// signals as they were, and the program.
fn execute(words: Words, mask: u64) -> ! {
    // SAFETY: numbers, and two variables that live. Without a terminal the second fails, and
    // nothing is lost.
    unsafe {
        call(number::SETPGID, 0, 0, 0, 0, 0);
        let group = call(number::GETPID, 0, 0, 0, 0, 0) as i32;
        call(number::IOCTL, 0, SET_FOREGROUND, &raw const group as usize, 0, 0);
        call(number::SIGPROCMASK, SET, &raw const mask as usize, 0, 8, 0);
    }
    // SAFETY: there is at least one argument (`main`), and all are strings.
    let program = unsafe { *words.args };
    let error = if text(program).contains(&b'/') {
        // SAFETY: the program's name is a string.
        unsafe { replace(program, words) }
    } else {
        search(program, words)
    };
    let why: &[u8] = match error {
        ENOENT | ENOTDIR => b"no such file or directory",
        EACCES => b"permission denied",
        _ => b"not an executable file",
    };
    say(&[b"init: cannot execute ", text(program), b": ", why, b"\n"]);
    exit(if matches!(error, ENOENT | ENOTDIR) { 127 } else { 126 })
}

/// Becomes another program; returns why not.
///
/// # Safety
/// `path` is a string that ends in a zero.
unsafe fn replace(path: *const u8, words: Words) -> isize {
    let (args, environment) = (words.args as usize, words.environment as usize);
    // SAFETY: both lists end in null, and are of strings.
    -unsafe { call(number::EXECVE, path as usize, args, environment, 0, 0) }
}

/// Looks for a program in the directories of `PATH`.
fn search(program: *const u8, words: Words) -> isize {
    let mut error = ENOENT;
    let mut buffer = [const { core::mem::MaybeUninit::<u8>::uninit() }; LONGEST];
    let mut rest = path(words);
    loop {
        let end = rest.iter().position(|b| *b == b':').unwrap_or(rest.len());
        let directory = if end == 0 { &b"."[..] } else { &rest[..end] };
        let name = text(program);
        if directory.len() + name.len() + 2 <= LONGEST {
            let bytes = directory.iter().chain(b"/").chain(name).chain(b"\0");
            for (place, byte) in buffer.iter_mut().zip(bytes) {
                place.write(*byte);
            }
            // SAFETY: what was just written ends in a zero.
            match unsafe { replace(buffer.as_ptr().cast(), words) } {
                ENOENT | ENOTDIR => {}
                EACCES => error = EACCES,
                other => return other,
            }
        }
        match rest.get(end + 1..) {
            Some(more) => rest = more,
            None => return error,
        }
    }
}

/// The value of `PATH`, or what is usual.
fn path(words: Words) -> &'static [u8] {
    let mut entry = words.environment;
    // SAFETY: the list ends in null, and is of strings.
    unsafe {
        while !(*entry).is_null() {
            if let Some(value) = text(*entry).strip_prefix(b"PATH=") {
                return value;
            }
            entry = entry.add(1);
        }
    }
    b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

/// A string of the kernel's, without its zero. They stay where they are for ever.
fn text(string: *const u8) -> &'static [u8] {
    // SAFETY: called with arguments and variables only, which end in a zero.
    unsafe {
        let mut length = 0;
        while core::ptr::read_volatile(string.add(length)) != 0 {
            length += 1;
        }
        core::slice::from_raw_parts(string, length)
    }
}

/// Whether a string is this one (which ends in its zero).
///
/// # Safety
/// `string` ends in a zero.
unsafe fn is(string: *const u8, wanted: &[u8]) -> bool {
    // SAFETY: not read beyond its zero: the first difference ends it.
    wanted
        .iter()
        .enumerate()
        .all(|(at, byte)| unsafe { core::ptr::read_volatile(string.add(at)) } == *byte)
}

fn say(parts: &[&[u8]]) {
    for part in parts {
        // SAFETY: as long as said. Nothing is to be done about a stream that is closed.
        unsafe { call(number::WRITE, 2, part.as_ptr() as usize, part.len(), 0, 0) };
    }
}

fn exit(code: i32) -> ! {
    loop {
        // SAFETY: a number only.
        unsafe { call(number::EXIT_GROUP, code as usize, 0, 0, 0, 0) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(125)
}

/// The precompiled core library names it; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
