#!/usr/bin/env python3
"""Finds which functions `corten runtime` executes and writes them down for the linker, so that
they lie side by side in the binary (crates/corten/link-order.ld says why).

    scripts/link-order.py            (as root, on x86-64)

It builds the release binary, with its link map; so nothing has to be built before, and the build
after it only links anew. Each command of main() is run one instruction at a time under ptrace(2),
with everything it clones, until they execute another program. Takes some minutes.

Functions are named twice. First exactly, with the hash that tells the instances of a generic
function apart: these hold for the same sources and compiler. Then without: whatever has another
hash is still kept together, with instances that are not wanted between. What the result lacks,
or has too much (another compiler, changed code), costs memory, nothing else.
"""

import bisect
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
RESULT = HOME / "crates/corten/link-order.ld"

# <sys/ptrace.h>, <sys/personality.h>, <bits/waitflags.h>
TRACEME, PEEKUSER, CONT, SINGLESTEP, SETOPTIONS = 0, 3, 7, 9, 0x4200
TRACE_FORK, TRACE_VFORK, TRACE_CLONE, TRACE_EXEC, EXITKILL = 0x2, 0x4, 0x8, 0x10, 0x100000
EVENT_EXEC = 4
RIP = 16 * 8
ADDR_NO_RANDOMIZE = 0x0040000
WALL = 0x40000000
# <elf.h>
ET_EXEC = 2

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, pid, data=0, address=0):
    return libc.ptrace(request, pid, ctypes.c_void_p(address), ctypes.c_void_p(data))


def load_base(pid, inode):
    """What the program with this inode in `pid` has added to its addresses; None if it executes
    another one."""
    try:
        if os.stat(f"/proc/{pid}/exe").st_ino != inode:
            return None
        with open(f"/proc/{pid}/exe", "rb") as file:
            if file.read(18)[16] == ET_EXEC:
                return 0
        for line in open(f"/proc/{pid}/maps"):
            fields = line.split()
            if len(fields) > 5 and int(fields[4]) == inode:
                return int(fields[0].split("-")[0], 16) - int(fields[2], 16)
    except OSError:
        pass
    return None


def executed(command, seen):
    """Adds every address of the program that `command` executes to `seen`, in their order."""
    inode = os.stat(command[0]).st_ino
    pid = os.fork()
    if pid == 0:
        libc.personality(ADDR_NO_RANDOMIZE)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        ptrace(TRACEME, 0)
        os.execv(command[0], command)
    os.waitpid(pid, 0)
    ptrace(SETOPTIONS, pid, TRACE_FORK | TRACE_VFORK | TRACE_CLONE | TRACE_EXEC | EXITKILL)
    bases = {pid: load_base(pid, inode)}
    ptrace(SINGLESTEP, pid)
    while True:
        child, status = os.waitpid(-1, WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if child != pid:
                continue
            if status:
                sys.exit(f"{' '.join(command)} ended with wait status {status}")
            return  # what `create` has made goes on, and is stepped through by the next one
        stop, event, deliver = os.WSTOPSIG(status), status >> 16, 0
        if event == EVENT_EXEC or child not in bases:
            bases[child] = load_base(child, inode)
        if not event and stop == signal.SIGTRAP:
            if bases[child] is not None:
                seen.setdefault(ptrace(PEEKUSER, child, address=RIP) - bases[child])
        elif not event and stop != signal.SIGSTOP:
            deliver = stop
        ptrace(CONT if bases[child] is None else SINGLESTEP, child, deliver)


def bundle(corten, path, args):
    (path / "rootfs/bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), path / "rootfs/bin" / Path(args[0]).name)
    subprocess.run([corten, "runtime", "spec", "--bundle", path], check=True)
    config = path / "config.json"
    spec = json.loads(config.read_text())
    spec["process"].update(terminal=False, args=args)
    spec["process"].pop("rlimits", None)  # raising them needs CAP_SYS_RESOURCE
    config.write_text(json.dumps(spec))


def sections(link_map):
    """The code of the link map: start, size, file and name of each input section."""
    line = re.compile(r"\s*([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)\s+\d+ {9}(\S+):\((\.text[^)]*)\)")
    found = (line.match(text) for text in open(link_map))
    return sorted((int(m[1], 16), int(m[2], 16), m[3], m[4]) for m in found if m)


def patterns(file, name):
    """Names the section without directories, as this build does and as every build does: with and
    without hashes. The crate is part of it, for there is a `Vec::clone` in each and one only is
    wanted."""
    return [within(file, name), within(file, unhashed(name))]


def unhashed(name):
    name = re.sub(r"17h[0-9a-f]{16}E.*", "17h*", name)
    name = re.sub(r"Cs[0-9A-Za-z]{5,}_", "Cs*_", name)
    return re.sub(r"\.llvm\.[0-9]+$", ".llvm.*", name)


def within(file, name):
    if archive := re.search(r"(lib\w+)[-.0-9]*\.a\((\S+)\)$", file):
        return f"*{archive[1]}*.a:{archive[2]}({name})"
    if crate := re.search(r"\.(\w+)-[0-9a-f]{16}\.\w+\.[0-9a-f]{16}-cgu", file):
        return f"*.{crate[1]}-*({name})"
    return f"*{Path(file).name}({name})" if name == ".text" else f"*({name})"


def build(work):
    """The release binary and its link map."""
    link_map = work / "map"
    command = ["cargo", "rustc", "--release", "--locked", "-p", "corten", "--bin", "corten",
               "--message-format=json", "--", "-C", f"link-arg=-Wl,-Map={link_map}"]
    output = subprocess.run(command, cwd=HOME, check=True, stdout=subprocess.PIPE, text=True).stdout
    built = [m["executable"] for m in map(json.loads, output.splitlines()) if m.get("executable")]
    return built[-1], link_map


def main():
    if os.geteuid() != 0 or os.uname().machine != "x86_64":
        sys.exit("link-order.py: needs root, and x86-64")
    with tempfile.TemporaryDirectory(prefix="corten-link-order.") as work:
        work = Path(work)
        corten, link_map = build(work)
        bundle(corten, work / "true", ["/bin/true"])
        bundle(corten, work / "sleep", ["/bin/sleep", "1000"])
        shutil.copy(shutil.which("busybox"), work / "sleep/rootfs/bin/true")
        runtime = [corten, "runtime", "--root", str(work / "state")]
        name = f"link-order-{os.getpid()}"
        seen = {}
        try:
            executed([*runtime, "run", "--bundle", str(work / "true"), name], seen)
            executed([*runtime, "create", "--bundle", str(work / "true"), name], seen)
            executed([*runtime, "state", name], seen)
            executed([*runtime, "start", name], seen)
            executed([*runtime, "delete", "--force", name], seen)
            subprocess.run([*runtime, "run", "--detach", "--bundle", work / "sleep", name],
                           check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            executed([*runtime, "exec", name, "/bin/true"], seen)
        finally:
            subprocess.run([*runtime, "delete", "--force", name], stderr=subprocess.DEVNULL)
        code = sections(link_map)
        starts = [start for start, *_ in code]
        order, exact, size = {}, {}, 0
        for address in seen:
            at = bisect.bisect(starts, address) - 1
            if at >= 0 and address < code[at][0] + code[at][1]:
                here, anywhere = patterns(*code[at][2:])
                if here not in exact:
                    exact.setdefault(here)
                    order.setdefault(anywhere)
                    size += code[at][1]
    head = RESULT.read_text().split("SECTIONS {")[0]
    body = "\n".join(f"    {text}" for text in dict.fromkeys([*exact, *order]))
    RESULT.write_text(f"{head}SECTIONS {{\n  .text.runtime : {{\n{body}\n  }}\n}} INSERT BEFORE .text;\n")
    print(f"{RESULT}: {len(exact)} functions of {size // 1024} KiB; build again to use them")


if __name__ == "__main__":
    main()
