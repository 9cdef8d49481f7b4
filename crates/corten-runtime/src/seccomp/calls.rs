//! The machines a filter can be made for: their ABIs, and look-up of a system call's name
//! in the tables `calls_x86` and `calls_arm`. A profile names some 400 calls for up to three
//! ABIs, so one look-up (a hash computed when this crate is compiled) finds the row that
//! holds the numbers of all ABIs, and every ABI's rows are kept in ascending order of number.

use corten_oci::runtime_spec::Arch;

use super::{calls_arm, calls_x86};

/// A call's name and its number in each ABI of a table.
pub(super) type Call<const ABIS: usize> = (&'static str, [u32; ABIS]);

/// A call an ABI does not have.
pub(super) const NONE: u32 = u32::MAX;

/// x32 numbers carry this bit (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// What runs on one kind of processor.
#[derive(Debug)]
pub(super) struct Machine {
    /// The native ABI first.
    pub(super) abis: &'static [Abi],
    names: &'static [&'static str],
    heat: &'static [u8],
    slots: &'static [u16; SLOTS],
}

/// One way to make system calls.
#[derive(Debug)]
pub(super) struct Abi {
    pub(super) arch: Arch,
    /// `AUDIT_ARCH_*`.
    pub(super) audit: u32,
    /// Added to every number.
    pub(super) base: u32,
    /// Number and row, ascending; padded with [`NONE`].
    calls: &'static [(u32, u16)],
    /// Calls that can also be made through another one, which takes a selector as its first
    /// argument and the call's own arguments in memory, where no filter can see them: name,
    /// multiplexer, selector.
    pub(super) multiplexed: &'static [(&'static str, &'static str, u32)],
}

impl Machine {
    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.names.len()
    }

    /// The row of a name.
    pub(super) fn row(&self, name: &str) -> Option<usize> {
        let mut slot = slot(name.as_bytes());
        loop {
            let row = usize::from(*self.slots.get(slot)?).checked_sub(1)?;
            if self.names.get(row).is_some_and(|known| *known == name) {
                return Some(row);
            }
            slot = (slot + 1) % SLOTS;
        }
    }

    /// How often a row's call is made, roughly.
    pub(super) fn heat(&self, row: usize) -> u32 {
        self.heat.get(row).map_or(1, |heat| u32::from(*heat))
    }

    /// Number and row, ascending.
    pub(super) fn calls(&self, abi: &'static Abi) -> impl Iterator<Item = (u32, usize)> {
        abi.calls
            .iter()
            .take_while(|(number, _)| *number != NONE)
            .map(|(number, row)| (*number, usize::from(*row)))
    }
}

/// This machine.
pub(super) const NATIVE: &Machine = if cfg!(target_arch = "aarch64") {
    &ARM
} else {
    &X86
};

/// A machine's tables, computed when this crate is compiled. Of each ABI: its place in the
/// rows of `$table`, its names, what is added to its numbers, and its multiplexed calls.
macro_rules! machine {
    ($table:expr, $width:literal, [$(($at:literal, $arch:expr, $audit:literal, $base:expr, $multiplexed:expr)),+ $(,)?]) => {{
        const CALLS: &[Call<$width>] = $table;
        const ROWS: usize = CALLS.len();
        static NAMES: [&str; ROWS] = names(CALLS);
        static HEAT: [u8; ROWS] = heat(&NAMES);
        static INDEX: [u16; SLOTS] = index(&NAMES);
        static ABIS: [Abi; $width] = [$(Abi {
            arch: $arch,
            audit: $audit,
            base: $base,
            calls: {
                static NUMBERS: [(u32, u16); ROWS] = by_number(CALLS, $at);
                &NUMBERS
            },
            multiplexed: $multiplexed,
        }),+];
        Machine {
            abis: &ABIS,
            names: &NAMES,
            heat: &HEAT,
            slots: &INDEX,
        }
    }};
}

#[rustfmt::skip]
pub(super) static X86: Machine = machine!(calls_x86::CALLS, 3, [
    (0, Arch::ScmpArchX86_64, 0xc000_003e, 0, &[]),
    (1, Arch::ScmpArchX86, 0x4000_0003, 0, I386_MULTIPLEXED),
    (2, Arch::ScmpArchX32, 0xc000_003e, X32_BIT, &[]),
]);

#[rustfmt::skip]
pub(super) static ARM: Machine = machine!(calls_arm::CALLS, 2, [
    (0, Arch::ScmpArchAarch64, 0xc000_00b7, 0, &[]),
    (1, Arch::ScmpArchArm, 0x4000_0028, 0, &[]),
]);

/// `linux/net.h` (`SYS_*`) and `linux/ipc.h`.
#[rustfmt::skip]
const I386_MULTIPLEXED: &[(&str, &str, u32)] = &[
    ("socket", "socketcall", 1), ("bind", "socketcall", 2), ("connect", "socketcall", 3),
    ("listen", "socketcall", 4), ("accept", "socketcall", 5), ("getsockname", "socketcall", 6),
    ("getpeername", "socketcall", 7), ("socketpair", "socketcall", 8), ("send", "socketcall", 9),
    ("recv", "socketcall", 10), ("sendto", "socketcall", 11), ("recvfrom", "socketcall", 12),
    ("shutdown", "socketcall", 13), ("setsockopt", "socketcall", 14),
    ("getsockopt", "socketcall", 15), ("sendmsg", "socketcall", 16),
    ("recvmsg", "socketcall", 17), ("accept4", "socketcall", 18),
    ("recvmmsg", "socketcall", 19), ("sendmmsg", "socketcall", 20),
    ("semop", "ipc", 1), ("semget", "ipc", 2), ("semctl", "ipc", 3), ("semtimedop", "ipc", 4),
    ("msgsnd", "ipc", 11), ("msgrcv", "ipc", 12), ("msgget", "ipc", 13), ("msgctl", "ipc", 14),
    ("shmat", "ipc", 21), ("shmdt", "ipc", 22), ("shmget", "ipc", 23), ("shmctl", "ipc", 24),
];

/// What programs do all day; the rest weighs 1. Kernels from 5.11 on remember which numbers
/// are allowed whatever their arguments and do not run the filter for them; on older ones
/// the search should end early for these.
#[rustfmt::skip]
const HOT: &[&str] = &[
    "read", "write", "futex", "futex_time64", "epoll_wait", "epoll_pwait", "clock_gettime",
    "clock_nanosleep", "recvfrom", "sendto", "recvmsg", "sendmsg", "poll", "ppoll", "close",
    "openat", "fstat", "newfstatat", "lseek", "mmap", "mmap2", "munmap", "madvise", "readv",
    "writev", "pread64", "pwrite64", "rt_sigprocmask", "ioctl", "getpid", "gettid", "sched_yield",
];
const HEAT: u8 = 24;

/// A power of two, at least twice as many as there are rows.
const SLOTS: usize = 1024;

/// FNV-1a.
const fn slot(name: &[u8]) -> usize {
    let mut hash = 0x811c_9dc5_u32;
    let mut at = 0;
    while at < name.len() {
        #[allow(clippy::indexing_slicing)] // `at` is below the length
        let byte = name[at];
        hash = (hash ^ byte as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    ((hash ^ (hash >> 15)) as usize) % SLOTS
}

// What follows runs in the compiler only: an index out of bounds would not compile.

/// Row + 1 by hash, 0 for "nothing here".
const fn index(names: &[&str]) -> [u16; SLOTS] {
    let mut slots = [0; SLOTS];
    let mut row = 0;
    while row < names.len() {
        let mut at = slot(names[row].as_bytes());
        while slots[at] != 0 {
            at = (at + 1) % SLOTS;
        }
        row += 1;
        slots[at] = row as u16;
    }
    slots
}

const fn names<const ABIS: usize, const ROWS: usize>(calls: &[Call<ABIS>]) -> [&'static str; ROWS] {
    let mut names = [""; ROWS];
    let mut row = 0;
    while row < ROWS {
        names[row] = calls[row].0;
        row += 1;
    }
    names
}

const fn heat<const ROWS: usize>(names: &[&str; ROWS]) -> [u8; ROWS] {
    let mut heat = [1; ROWS];
    let mut row = 0;
    while row < ROWS {
        let mut hot = 0;
        while hot < HOT.len() {
            if same(names[row].as_bytes(), HOT[hot].as_bytes()) {
                heat[row] = HEAT;
            }
            hot += 1;
        }
        row += 1;
    }
    heat
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Sorts the calls of one ABI. Numbers lie below 560, but for Arm's private ones.
const fn by_number<const ABIS: usize, const ROWS: usize>(
    calls: &[Call<ABIS>],
    abi: usize,
) -> [(u32, u16); ROWS] {
    const PRIVATE: u32 = 0xf_0000;
    const USUAL: usize = 560;
    let mut rows = [0u16; USUAL + 16];
    let mut row = 0;
    while row < ROWS {
        let number = calls[row].1[abi];
        row += 1;
        if number == NONE {
            continue;
        }
        let place = if number >= PRIVATE {
            USUAL + (number - PRIVATE) as usize
        } else {
            number as usize
        };
        rows[place] = row as u16;
    }
    let mut sorted = [(NONE, 0); ROWS];
    let mut count = 0;
    let mut place = 0;
    while place < rows.len() {
        if rows[place] != 0 {
            let row = rows[place] - 1;
            sorted[count] = (calls[row as usize].1[abi], row);
            count += 1;
        }
        place += 1;
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_every_number_once() {
        for machine in [&X86, &ARM] {
            assert!(machine.names.is_sorted_by(|a, b| a < b));
            for (row, name) in machine.names.iter().enumerate() {
                assert_eq!(machine.row(name), Some(row), "{name}");
            }
            for name in ["", "nosuchcall", "readx", "rea"] {
                assert_eq!(machine.row(name), None, "{name}");
            }
            for abi in machine.abis {
                let calls: Vec<_> = machine.calls(abi).collect();
                assert!(calls.is_sorted_by(|a, b| a.0 < b.0), "{:?}", abi.arch);
                for (name, multiplexer, _) in abi.multiplexed {
                    assert!(machine.row(multiplexer).is_some());
                    let known = machine.row(name).is_some();
                    assert!(known || ["send", "recv"].contains(name), "{name}");
                }
            }
        }
    }

    #[test]
    fn numbers() {
        let number = |machine: &'static Machine, abi: usize, name: &str| {
            let row = machine.row(name).unwrap();
            let mut calls = machine.calls(&machine.abis[abi]);
            calls.find(|(_, at)| *at == row).map(|(number, _)| number)
        };
        let table = [
            ("read", [Some(0), Some(3), Some(0)]),
            ("execve", [Some(59), Some(11), Some(520)]),
            ("socketcall", [None, Some(102), None]),
            ("uretprobe", [Some(335), None, None]),
            ("file_setattr", [Some(469), Some(469), Some(469)]),
        ];
        for (name, numbers) in table {
            for (abi, expected) in numbers.into_iter().enumerate() {
                assert_eq!(number(&X86, abi, name), expected, "{name}");
            }
        }
        assert_eq!(number(&ARM, 0, "read"), Some(63));
        assert_eq!(number(&ARM, 1, "read"), Some(3));
        assert_eq!(number(&ARM, 1, "set_tls"), Some(0xf_0005));
    }

    /// The running kernel's C library knows the same numbers.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn numbers_agree_with_the_c_library() {
        for (name, number) in [
            ("clone3", libc::SYS_clone3),
            ("openat2", libc::SYS_openat2),
            ("rt_sigreturn", libc::SYS_rt_sigreturn),
            ("mseal", libc::SYS_mseal),
        ] {
            let row = X86.row(name).unwrap();
            let mut calls = X86.calls(&X86.abis[0]);
            assert!(
                calls.any(|call| call == (u32::try_from(number).unwrap(), row)),
                "{name}"
            );
        }
    }
}
