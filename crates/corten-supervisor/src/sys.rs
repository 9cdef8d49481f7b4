//! The calls that need `unsafe`: forking, watching a descriptor, giving memory back.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, mount_change, move_mount};
use rustix::thread::UnshareFlags;

use tokio::io::unix::AsyncFd;

/// Leaves the process that spawned us: forks, ends the parent at once (so that whoever waits
/// for it need not wait for us), and goes on in a new session, keeping nothing else of the
/// caller's: neither its directory nor what it had open beyond the standard streams.
///
/// Must be called while the process has a single thread and nothing open of its own.
///
/// # Errors
/// The process cannot fork, or not close what it has open.
pub fn detach() -> io::Result<()> {
    // SAFETY: the caller guarantees that there is only this thread, so the child is a whole
    // copy: no lock is held by a thread that does not exist in it.
    match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {}
        // SAFETY: ends the process without running destructors or exit handlers, which belong
        // to the child now.
        _ => unsafe { libc::_exit(0) },
    }
    rustix::process::setsid()?;
    rustix::process::chdir(c"/")?;
    // SAFETY: nothing in this process owns a descriptor yet; these came with the spawning.
    // By number: the C library's wrapper is younger than some systems.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has a command begin in a mount namespace of its own, with these mounts attached, of which the host
/// sees nothing.
pub(crate) fn with_mounts(command: &mut Command, mounts: Vec<(OwnedFd, PathBuf)>) {
    let attach = move || {
        // SAFETY: only unsharing the descriptor table is what can break other code.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
        let below = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", below)?;
        for (mount, place) in &mounts {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(mount, "", CWD, place, flags)?;
        }
        Ok(())
    };
    // SAFETY: this process has one thread, so the child has no lock that somebody else held; it makes
    // system calls only.
    unsafe { command.pre_exec(attach) };
}

/// Has a command killed when this process ends before it.
pub(crate) fn end_with_us(command: &mut Command) {
    let us = rustix::process::getpid();
    let follow = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // It may have ended before that was asked for.
        match rustix::process::getppid() {
            Some(parent) if parent == us => Ok(()),
            _ => Err(rustix::io::Errno::SRCH.into()),
        }
    };
    // SAFETY: this process has one thread, so the child has no lock that somebody else held; it makes
    // system calls only.
    unsafe { command.pre_exec(follow) };
}

/// A child that has ended and has not been waited for; it is left so.
pub(crate) fn ended_child() -> Option<i32> {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: plain data, of which all zeroes is a value; the kernel writes it, and the call keeps
    // nothing of it. The field is there in what waitid tells, and zero where it tells of nobody.
    unsafe {
        let mut about: libc::siginfo_t = std::mem::zeroed();
        let done = libc::waitid(libc::P_ALL, 0, &raw mut about, options);
        (done == 0 && about.si_pid() != 0).then(|| about.si_pid())
    }
}

/// Reaps a child that has ended.
pub(crate) fn reap(pid: i32) -> bool {
    let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOHANG;
    let pid = rustix::process::Pid::from_raw(pid);
    pid.is_some_and(|pid| {
        let done = rustix::process::waitid(rustix::process::WaitId::Pid(pid), options);
        matches!(done, Ok(Some(_)))
    })
}

/// Watches a descriptor in the event loop.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, is one description, and tells the same number, from here to
    // its end, which the AsyncFd owns.
    unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)
}

/// Waits until a process has ended, of which somebody else takes the status.
pub(crate) async fn ended(pidfd: &AsyncFd<OwnedFd>) {
    while let Ok(mut ready) = pidfd.readable().await {
        let mut now = [PollFd::new(pidfd.get_ref(), PollFlags::IN)];
        if !matches!(poll(&mut now, Some(&Timespec::default())), Ok(0)) {
            return;
        }
        ready.clear_ready();
    }
}

/// Where the stack may have been before, beneath where it is.
const DEEP: usize = 256 * 1024;
/// Beneath the stack pointer, but in use: the red zone, and frames from here on.
const FRAMES: usize = 8 * 1024;

/// Gives memory back (`madvise(2)`): free memory of the heap; what the stack does not reach now;
/// pages of code and constants, which the kernel maps again from the page cache where they are
/// touched.
pub(crate) fn forget() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no memory from anybody; the allocator does its own locking.
    unsafe {
        libc::malloc_trim(0);
    }
    let page = rustix::param::page_size();
    let here = std::ptr::from_ref(&page).addr();
    let end = (here - FRAMES) / page * page;
    if rustix::thread::gettid() == rustix::process::getpid() {
        // SAFETY: nothing lies beneath the stack pointer but what the red zone and calls from
        // here need, for which there is FRAMES; other mappings are far from a main thread's stack
        // (the kernel keeps its limit's length, at least 128 MiB, between). What is no memory is
        // skipped.
        unsafe { libc::madvise((end - DEEP) as *mut libc::c_void, DEEP, libc::MADV_DONTNEED) };
    }
    // SAFETY: the callback only reads what it is given, and keeps nothing of it.
    unsafe { libc::dl_iterate_phdr(Some(forget_segments), std::ptr::null_mut()) };
}

/// For each object of the program (`dl_iterate_phdr(3)`): segments that are not writable are as
/// in the file, and so may be parts of what was write-protected after the start. What can be
/// written is left alone.
unsafe extern "C" fn forget_segments(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the C library passes a valid description, with as many headers as it says.
    let (base, headers) = unsafe {
        let info = &*info;
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        let count = usize::from(info.dlpi_phnum);
        (
            info.dlpi_addr,
            std::slice::from_raw_parts(info.dlpi_phdr, count),
        )
    };
    let page = rustix::param::page_size() as u64;
    for header in headers {
        if header.p_type == libc::PT_GNU_RELRO {
            let start = (base + header.p_vaddr).next_multiple_of(page);
            let end = (base + header.p_vaddr + header.p_memsz) / page * page;
            forget_constants(start, end, page);
        }
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        // Whole pages within: neighbours may share the others.
        let start = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_filesz) / page * page;
        if start < end {
            let length = usize::try_from(end - start).unwrap_or(0);
            // SAFETY: a private mapping of a file, never written: dropped pages come back with
            // the same bytes. The file cannot change, as it is being executed (ETXTBSY).
            unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
        }
    }
    0
}

/// In an entry of `/proc/self/pagemap`: a page of a file (or shared), not the process's own copy.
const OF_A_FILE: u64 = 1 << 61;

/// Constants that hold addresses: written by the program's start if they are relocated at all, and
/// protected since (`PT_GNU_RELRO`). Pages that were written are the only copy there is; all of
/// them in a position-independent program, next to none in one that is bound to its address.
fn forget_constants(start: u64, end: u64, page: u64) {
    let count = end.saturating_sub(start) / page;
    let mut entries = vec![0; usize::try_from(count * 8).unwrap_or(0)];
    let read = File::open("/proc/self/pagemap")
        .and_then(|map| map.read_exact_at(&mut entries, start / page * 8));
    if read.is_err() {
        return;
    }
    let (entries, _) = entries.as_chunks();
    for (address, entry) in (start..end).step_by(page as usize).zip(entries) {
        if u64::from_ne_bytes(*entry) & OF_A_FILE != 0 {
            // SAFETY: a page of a private mapping of a file that was not written and cannot be
            // any more, by any thread: it comes back with the same bytes, as above.
            unsafe {
                libc::madvise(
                    address as *mut libc::c_void,
                    page as usize,
                    libc::MADV_DONTNEED,
                )
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A file's pages, mapped as a program's constants are.
    struct Mapped {
        start: *mut u8,
        page: usize,
        count: usize,
    }

    impl Mapped {
        /// Each page is full of its own number.
        fn new(count: u8) -> Self {
            let page = rustix::param::page_size();
            let mut file = tempfile::tempfile().unwrap();
            for number in 0..count {
                file.write_all(&vec![number; page]).unwrap();
            }
            let length = usize::from(count) * page;
            // SAFETY: a new mapping, wherever there is room.
            let start = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    length,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE,
                    std::os::fd::AsRawFd::as_raw_fd(&file),
                    0,
                )
            };
            assert_ne!(start, libc::MAP_FAILED);
            Self {
                start: start.cast(),
                page,
                count: usize::from(count),
            }
        }

        fn at(&self, number: usize) -> *mut u8 {
            assert!(number < self.count);
            self.start.wrapping_add(number * self.page)
        }

        fn read(&self, number: usize) -> u8 {
            // SAFETY: within the mapping, which nobody else knows.
            unsafe { self.at(number).read_volatile() }
        }

        fn write(&self, number: usize, byte: u8) {
            // SAFETY: as above, and it is writable.
            unsafe { self.at(number).write_volatile(byte) }
        }

        /// Whether the process has the page.
        fn is_present(&self, number: usize) -> bool {
            let mut entry = [0; 8];
            let map = File::open("/proc/self/pagemap").unwrap();
            let offset = self.at(number).addr() / self.page * 8;
            map.read_exact_at(&mut entry, offset as u64).unwrap();
            u64::from_ne_bytes(entry) >> 63 != 0
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: our own mapping, of which no reference is left.
            unsafe { libc::munmap(self.start.cast(), self.count * self.page) };
        }
    }

    #[test]
    fn constants_are_forgotten_unless_they_were_written() {
        let pages = Mapped::new(8);
        for written in [0, 3, 7] {
            pages.write(written, 100);
        }
        for read in [1, 4, 5, 6] {
            assert_eq!(usize::from(pages.read(read)), read);
        }
        // All but the last two, which are somebody else's.
        let [start, end] = [0, 6].map(|number| pages.at(number).addr() as u64);
        forget_constants(start, end, pages.page as u64);
        let present = (0..8).filter(|number| pages.is_present(*number));
        assert_eq!(present.collect::<Vec<_>>(), [0, 3, 6, 7]);
        let bytes: Vec<u8> = (0..8).map(|number| pages.read(number)).collect();
        assert_eq!(bytes, [100, 1, 2, 100, 4, 5, 6, 100]);
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let text = String::from("kept");
        for _ in 0..3 {
            super::forget();
            assert_eq!(text.to_uppercase(), "KEPT");
            assert!(std::fs::metadata("/proc/self/exe").is_ok());
        }
    }
}
