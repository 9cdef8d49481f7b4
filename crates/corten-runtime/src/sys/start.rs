//! How the binary begins (x86-64), but where much memory is going to be copied
//! (`sys/entry.rs`): the C library's start without its inventory of the processor.
//!
//! Before `main`, a static program of the GNU C library asks the processor some sixty times
//! what it is and how large its caches are, in order to choose among its copies of `memcpy`
//! and to tune them. In a virtual machine each `cpuid` is a trip to the hypervisor: 10 to
//! 20 µs here, 0.6 ms of every start (on bare metal they cost next to nothing), which is most
//! of what an empty program takes. So this does what `__libc_start_main` does in a static program,
//! position-independent or not, but for those questions; the library then uses the copies that
//! any x86-64 can execute. `_dl_x86_cpu_features` stays empty, which is what they are chosen by,
//! but for two numbers:
//!
//! - the one threshold that has no value of its own;
//! - what the processor is known to be good for (`isa_1`): shared libraries are refused where that
//!   is less than they were compiled for. The modules of `nsswitch.conf` are such libraries, and
//!   with them comes the machine's own C library, which asks for itself. What is installed here can
//!   be executed here, so the answer is: everything.
//!
//! Relocation and its write protection, thread-local storage, the guards of the stack and of
//! stored pointers, and constructors are as ever. `.preinit_array` and `.fini_array` are not
//! walked: nothing in this program uses them.
//!
//! These are the library's private functions. They are called only if the library that was
//! linked says it is a version whose `__libc_start_main` has been read, 2.36, and only if the
//! program was not started with more rights than its caller has; else `_start` does all of it
//! as ever. The references are weak, so that the program can be linked with any version.

use std::arch::global_asm;
use std::io::Write as _;
use std::process::ExitCode;

use crate::cli;

// At entry the stack is as the kernel made it: argc, argv…, NULL, envp…, NULL, auxv.
// rdx is for `_start`. ebx: argc; r12: argv; r13: envp; r15: the stack at entry.
global_asm!(
    ".pushsection .text.corten_start,\"ax\",@progbits",
    ".weak __environ, __libc_stack_end, __libc_enable_secure, _dl_random",
    ".weak __x86_shared_non_temporal_threshold, _dl_x86_cpu_features",
    ".weak __rela_iplt_start, __rela_iplt_end",
    ".weak _dl_aux_init, __tunables_init, _dl_relocate_static_pie, __libc_setup_tls",
    ".weak __libc_early_init, __libc_init_first, _dl_debug_initialize",
    ".globl corten_start",
    ".type corten_start,@function",
    "corten_start:",
    "mov r15, rsp",
    "mov r14, rdx",
    "mov ebx, [rsp]",
    "lea r12, [rsp + 8]",
    "lea r13, [r12 + 8*rbx + 8]",
    "xor ebp, ebp",
    "and rsp, -16",
    "call gnu_get_libc_version",
    "cmp dword ptr [rax], 0x36332e32", // "2.36"
    "jne 9f",
    "cmp byte ptr [rax + 4], 0",
    "jne 9f",
    "mov [rip + __environ], r13",
    "mov [rip + __libc_stack_end], r15",
    "mov rdi, r13",
    "2:",
    "add rdi, 8",
    "cmp qword ptr [rdi - 8], 0",
    "jne 2b",
    "call _dl_aux_init",
    "cmp dword ptr [rip + __libc_enable_secure], 0",
    "jne 9f",
    "mov rdi, r13",
    "call __tunables_init",
    "mov qword ptr [rip + __x86_shared_non_temporal_threshold], {non_temporal}",
    "mov dword ptr [rip + _dl_x86_cpu_features + {isa}], 15", // baseline, v2, v3, v4
    "call _dl_relocate_static_pie",
    // A program that is bound to one address has only this to relocate (R_X86_64_IRELATIVE):
    // which copy of a function is to be used, as a function says.
    "lea r14, [rip + __rela_iplt_start]",
    "lea r15, [rip + __rela_iplt_end]",
    "5:",
    "cmp r14, r15",
    "jae 6f",
    "call [r14 + 16]",
    "mov rcx, [r14]",
    "mov [rcx], rax",
    "add r14, 24",
    "jmp 5b",
    "6:",
    "call __libc_setup_tls",
    // The guards of stacks (its lowest byte ends a string) and of stored pointers.
    "mov rdx, [rip + _dl_random]",
    "mov rax, [rdx]",
    "xor al, al",
    "mov fs:[0x28], rax",
    "mov rax, [rdx + 8]",
    "mov fs:[0x30], rax",
    "mov edi, 1",
    "call __libc_early_init",
    "mov edi, ebx",
    "mov rsi, r12",
    "mov rdx, r13",
    "call __libc_init_first",
    "call _init",
    "lea r14, [rip + __init_array_start]",
    "lea r15, [rip + __init_array_end]",
    "3:",
    "cmp r14, r15",
    "jae 4f",
    "mov edi, ebx",
    "mov rsi, r12",
    "mov rdx, r13",
    "call [r14]",
    "add r14, 8",
    "jmp 3b",
    "4:",
    "xor edi, edi",
    "xor esi, esi",
    "call _dl_debug_initialize",
    // The runtime's own, or that of every other face.
    "cmp ebx, 2",
    "jb 7f",
    "mov rax, [r12 + 8]",
    "movabs rcx, 0x00656d69746e7572", // "runtime\0"
    "cmp [rax], rcx",
    "jne 7f",
    "call {main}",
    "jmp 8f",
    "7:",
    "mov edi, ebx",
    "mov rsi, r12",
    "mov rdx, r13",
    "call main",
    "8:",
    "mov edi, eax",
    "call exit",
    "hlt",
    // Not that version: from the beginning.
    "9:",
    "mov rsp, r15",
    "mov rdx, r14",
    "jmp _start",
    ".size corten_start, . - corten_start",
    ".popsection",
    main = sym corten_runtime_main,
    // What passes the caches by, as it would be with a share of 16 MiB in the largest.
    non_temporal = const 12 << 20,
    isa = const 0x138,
);

/// Instead of a Rust program's `main`, which would look for the end of its stack in
/// `/proc/self/maps` and prepare to report that it has come to it. The two things that
/// matter are done here: that the first descriptors are nobody else's, and that a reader's
/// end is an error and not a signal.
#[unsafe(no_mangle)]
extern "C" fn corten_runtime_main() -> libc::c_int {
    for descriptor in 0..=2 {
        // SAFETY: neither call takes more than plain numbers and a constant path. What is
        // opened becomes the lowest number that is free, and stays open.
        unsafe {
            if libc::fcntl(descriptor, libc::F_GETFD) == -1
                && libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) != descriptor
            {
                libc::abort();
            }
        }
    }
    // SAFETY: SIG_IGN is a valid action.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let code = cli::main(std::env::args_os().skip(2).collect());
    std::io::stdout().flush().ok();
    // The standard library does not tell the number.
    let mut numbers = 0..=u8::MAX;
    let number = numbers.find(|number| ExitCode::from(*number) == code);
    number.unwrap_or(1).into()
}
