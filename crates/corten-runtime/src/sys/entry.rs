//! Where the `corten` binary begins (x86-64; `crates/corten/build.rs` links it so): what
//! is cheap before the C library has started a program of 20 MB, and dear afterwards.
//!
//! - `corten runtime run|create|exec` execute themselves once more from a sealed copy
//!   ([`crate::exe`]). Starting the C library, and relocating a program that is not linked
//!   for one address, is wasted on one that is replaced a moment later. So the same three
//!   system calls are made here already.
//! - Otherwise, the pages that will be written (or relocated, where anything is) are brought
//!   in with one system call instead of one page fault each.
//! - All but what serves and moves images goes on in `sys/start.rs`.
//!
//! This is an optimisation only and decides nothing: whatever fails here, and whatever is
//! not recognised (`--` options before `runtime`, another name of the binary), falls
//! through to the start of its face (`sys/start.rs`, or the C library's `_start`), and
//! [`crate::exe::seal_self`] does (and checks) the same again. No memory but the stack is
//! written; nothing here needs relocation.

/// Only what is linked statically has the library's start to itself.
#[cfg(target_feature = "crt-static")]
macro_rules! short_start {
    () => {
        "jmp corten_start"
    };
}
#[cfg(not(target_feature = "crt-static"))]
macro_rules! short_start {
    () => {
        "jmp _start"
    };
}

// Registers at entry: rsp → argc, argv…, NULL, envp…, NULL; rdx is for `_start`.
// rbx: saved rdx; rbp: argc; r12: argv; r13: descriptor.
std::arch::global_asm!(
    ".pushsection .text.corten_entry,\"ax\",@progbits",
    ".weak __rela_iplt_start, __rela_iplt_end, __data_start",
    ".globl corten_entry",
    ".type corten_entry,@function",
    "corten_entry:",
    "mov rbx, rdx",
    "mov rbp, [rsp]",
    "lea r12, [rsp + 8]",
    // Only `… runtime …`. A string shorter than eight bytes is followed by others: the
    // last one on the stack is the file name and eight more bytes.
    "cmp rbp, 3",
    "jb 6f",
    "mov rax, [r12 + 8]",
    "movabs rcx, 0x00656d69746e7572", // "runtime\0"
    "cmp [rax], rcx",
    "jne 6f",
    "mov ecx, 2",
    "2:",
    "mov rax, [r12 + 8*rcx]",
    "mov rax, [rax]",
    "cmp eax, 0x006e7572", // "run\0"
    "je 3f",
    "shl rax, 8",
    "movabs rdx, 0x0065746165726300", // "create\0"
    "cmp rax, rdx",
    "je 3f",
    "shl rax, 16",
    "movabs rdx, 0x0063657865000000", // "exec\0"
    "cmp rax, rdx",
    "je 3f",
    "inc rcx",
    "cmp rcx, rbp",
    "jb 2b",
    "jmp 6f",
    // Sealed already? statfs: f_flags & ST_RDONLY.
    "3:",
    "sub rsp, 128",
    "lea rdi, [rip + 8f]",
    "mov rsi, rsp",
    "mov eax, {statfs}",
    "syscall",
    "test rax, rax",
    "jnz 5f",
    "test byte ptr [rsp + {f_flags}], 1",
    "jnz 5f",
    "mov edi, {at_fdcwd}",
    "lea rsi, [rip + 8f]",
    "mov edx, {clone_cloexec}",
    "mov eax, {open_tree}",
    "syscall",
    "test rax, rax",
    "js 5f",
    "mov r13, rax",
    // struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
    "mov qword ptr [rsp], {rdonly}",
    "mov qword ptr [rsp + 8], 0",
    "mov qword ptr [rsp + 16], {private}",
    "mov qword ptr [rsp + 24], 0",
    "mov edi, r13d",
    "lea rsi, [rip + 9f]",
    "mov edx, {empty_path}",
    "mov r10, rsp",
    "mov r8d, 32",
    "mov eax, {mount_setattr}",
    "syscall",
    "test rax, rax",
    "jnz 4f",
    "mov edi, r13d",
    "lea rsi, [rip + 9f]",
    "mov rdx, r12",
    "lea r10, [r12 + 8*rbp + 8]",
    "mov r8d, {empty_path}",
    "mov eax, {execveat}",
    "syscall",
    // Still here: leave nothing behind.
    "4:",
    "mov edi, r13d",
    "mov eax, {close}",
    "syscall",
    "5:",
    "add rsp, 128",
    // From the first page of what is read-only after relocation to the last of what is not; in
    // a program that is bound to one address (then there is a list of what remains to be
    // relocated) from the first that is not.
    "6:",
    "lea rdi, [rip + __fini_array_start]",
    "lea rax, [rip + __rela_iplt_start]",
    "lea rcx, [rip + __rela_iplt_end]",
    "cmp rax, rcx",
    "je 10f",
    "lea rdi, [rip + __data_start]",
    "10:",
    "and rdi, -4096",
    "lea rsi, [rip + _end]",
    "sub rsi, rdi",
    "add rsi, 4095",
    "and rsi, -4096",
    "mov edx, {populate_write}",
    "mov eax, {madvise}",
    "syscall",
    // Where much memory is copied, the C library had better know the processor: is any of the
    // first words one of those?
    "mov ecx, 1",
    "11:",
    "cmp rcx, rbp",
    "jae 14f",
    "cmp ecx, 8",
    "ja 14f",
    "mov rax, [r12 + 8*rcx]",
    "mov rax, [rax]",
    "lea rsi, [rip + 16f]",
    "12:",
    "mov rdx, [rsi]",
    "test rdx, rdx",
    "jz 13f",
    "and rdx, rax",
    "cmp rdx, [rsi + 8]",
    "je 7f",
    "add rsi, 16",
    "jmp 12b",
    "13:",
    "inc rcx",
    "jmp 11b",
    "14:",
    "cmp rbp, 2",
    "jb 15f",
    "mov rax, [r12 + 8]",
    "movabs rcx, 0x00656d69746e7572",
    "cmp [rax], rcx",
    "jne 15f",
    // So much of the stack the runtime needs, too.
    "lea rdi, [rsp - {stack}]",
    "and rdi, -4096",
    "mov esi, {stack}",
    "mov edx, {populate_write}",
    "mov eax, {madvise}",
    "syscall",
    "15:",
    "mov rdx, rbx",
    short_start!(),
    "7:",
    "mov rdx, rbx",
    "jmp _start",
    "8: .asciz \"/proc/self/exe\"",
    "9: .asciz \"\"",
    // Which bytes, and what they are.
    ".balign 8",
    "16:",
    ".quad 0xffffffffffff",
    ".ascii \"serve\\0\\0\\0\"",
    ".quad 0xffffffffffffffff",
    ".ascii \"registry\"",
    ".quad 0xffffffffff",
    ".ascii \"pull\\0\\0\\0\\0\"",
    ".quad 0xffffffffff",
    ".ascii \"push\\0\\0\\0\\0\"",
    ".quad 0xffffffffff",
    ".ascii \"load\\0\\0\\0\\0\"",
    ".quad 0xffffffffff",
    ".ascii \"save\\0\\0\\0\\0\"",
    ".quad 0",
    ".size corten_entry, . - corten_entry",
    ".popsection",
    statfs = const libc::SYS_statfs,
    f_flags = const 80, // of struct statfs; `libc` does not name it
    at_fdcwd = const libc::AT_FDCWD,
    clone_cloexec = const OPEN_TREE_CLONE | libc::O_CLOEXEC,
    open_tree = const libc::SYS_open_tree,
    rdonly = const 1, // MOUNT_ATTR_RDONLY
    private = const libc::MS_PRIVATE,
    empty_path = const libc::AT_EMPTY_PATH,
    mount_setattr = const libc::SYS_mount_setattr,
    execveat = const libc::SYS_execveat,
    close = const libc::SYS_close,
    populate_write = const libc::MADV_POPULATE_WRITE,
    madvise = const libc::SYS_madvise,
    stack = const 60 << 10,
);

const OPEN_TREE_CLONE: i32 = 1;
