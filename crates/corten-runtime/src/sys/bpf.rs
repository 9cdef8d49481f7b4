//! `bpf(2)` for device filters of v2 control groups. Each command reads a prefix of
//! `union bpf_attr`; what is not given is zero.

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use super::check;

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const PROG_GET_FD_BY_ID: i32 = 13;
const PROG_QUERY: i32 = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// Several programs may be attached: all must agree.
const ALLOW_MULTI: u32 = 2;
/// Put it in the place of another.
const REPLACE: u32 = 4;

/// One instruction of an eBPF program (`struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct BpfInsn {
    /// Operation.
    pub(crate) code: u8,
    /// Destination register in the low, source register in the high four bits.
    pub(crate) registers: u8,
    /// Jump distance or memory offset.
    pub(crate) offset: i16,
    /// Immediate operand.
    pub(crate) immediate: i32,
}

/// Attributes that are plain numbers and pointers, as the command has them.
trait Attributes {}

fn bpf<T: Attributes>(command: i32, attributes: &mut T) -> Result<libc::c_long, Errno> {
    // SAFETY: the attributes are `repr(C)` structures of this module, each a prefix of
    // `union bpf_attr`, with their own size; pointers in them outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    })
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just returned a new descriptor, which nobody else owns.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) }
}

/// Loads an eBPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
pub(crate) fn bpf_load_device(program: &[BpfInsn]) -> Result<OwnedFd, Errno> {
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    impl Attributes for Load {}
    let mut load = Load {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    bpf(PROG_LOAD, &mut load).map(owned)
}

#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

impl Attributes for Attach {}

impl Attach {
    fn new(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Self {
        Self {
            target_fd: cgroup.as_raw_fd().unsigned_abs(),
            attach_bpf_fd: program.as_raw_fd().unsigned_abs(),
            attach_type: CGROUP_DEVICE,
            attach_flags: 0,
            replace_bpf_fd: 0,
        }
    }
}

/// Attaches a device program to a v2 group, in the place of another one if given: the
/// kernel exchanges them in one step.
pub(crate) fn bpf_attach_device(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaces: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attach = Attach::new(cgroup, program);
    attach.attach_flags = ALLOW_MULTI;
    if let Some(old) = replaces {
        attach.attach_flags |= REPLACE;
        attach.replace_bpf_fd = old.as_raw_fd().unsigned_abs();
    }
    bpf(PROG_ATTACH, &mut attach).map(drop)
}

/// Detaches a device program from a v2 group.
pub(crate) fn bpf_detach_device(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> Result<(), Errno> {
    bpf(PROG_DETACH, &mut Attach::new(cgroup, program)).map(drop)
}

/// The device programs attached to a v2 group itself.
pub(crate) fn bpf_attached_devices(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    #[repr(C)]
    struct Query {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        padding: u32,
    }
    impl Attributes for Query {}
    #[repr(C)]
    struct ById {
        prog_id: u32,
        next_id: u32,
        open_flags: u32,
    }
    impl Attributes for ById {}
    // The kernel attaches at most 64.
    let mut ids = [0u32; 64];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd().unsigned_abs(),
        attach_type: CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        padding: 0,
    };
    bpf(PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.prog_cnt).unwrap_or(0);
    let open = |&prog_id: &u32| {
        let mut by_id = ById {
            prog_id,
            next_id: 0,
            open_flags: 0,
        };
        bpf(PROG_GET_FD_BY_ID, &mut by_id).map(owned)
    };
    ids.iter().take(count).map(open).collect()
}
