//! Classic BPF as the kernel runs it for seccomp.

use libc::sock_filter;

/// `struct seccomp_data`, without the instruction pointer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Data {
    pub(super) number: u32,
    pub(super) arch: u32,
    pub(super) args: [u64; 6],
}

impl Data {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            16..64 if offset.is_multiple_of(4) => {
                let arg = self.args[(offset as usize - 16) / 8];
                (if offset.is_multiple_of(8) {
                    arg
                } else {
                    arg >> 32
                }) as u32
            }
            _ => panic!("no word at {offset}"),
        }
    }
}

/// The program's return value.
pub(super) fn run(program: &[sock_filter], data: &Data) -> u32 {
    execute(program, data).0
}

/// How many instructions that takes.
pub(super) fn steps(program: &[sock_filter], data: &Data) -> usize {
    execute(program, data).1
}

fn execute(program: &[sock_filter], data: &Data) -> (u32, usize) {
    let mut accumulator = 0u32;
    let mut at = 0;
    for steps in 1.. {
        let instruction = program[at];
        let k = instruction.k;
        let holds = match instruction.code {
            0x06 => return (k, steps),
            0x20 => {
                accumulator = data.word(k);
                at += 1;
                continue;
            }
            0x54 => {
                accumulator &= k;
                at += 1;
                continue;
            }
            0x05 => {
                at += 1 + k as usize;
                continue;
            }
            0x15 => accumulator == k,
            0x25 => accumulator > k,
            0x35 => accumulator >= k,
            code => panic!("instruction {code:#x}"),
        };
        let distance = if holds {
            instruction.jt
        } else {
            instruction.jf
        };
        at += 1 + usize::from(distance);
    }
    unreachable!("programs end in a return")
}
