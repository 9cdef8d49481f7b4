#!/usr/bin/env python3
# Speaks CRIU's service protocol, for tests: reads a request, writes what it was told to
# `criu.log` among the images, and does the least. It kills the process that it is to save, and
# makes one where it is to restore one: of $CRIU_RESTORED, a command line, or a sleep.
import ctypes, json, os, signal, socket, sys

def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at

def fields(data):
    at, found = 0, {}
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        else:
            length, at = varint(data, at)
            value, at = data[at:at + length], at + length
        found.setdefault(key >> 3, []).append(value)
    return found

def number(field, value):
    out = bytes([field << 3]) if field < 16 else b''
    while value >= 128:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])

def text(field, value):
    return bytes([field << 3 | 2, len(value)]) + value

# For crash tests: what happens at which moment.
caller = os.getppid()
when, _, what = os.environ.get('CRIU_MOMENT', '').partition(' ')
def at(moment):
    if when == moment:
        os.kill(os.getpid() if what == 'die' else caller, signal.SIGKILL)
        while what == 'hang':
            signal.pause()

def tell(script, pid):
    notice = text(1, script) + number(2, pid)
    if when == script.decode() and what != 'die':
        os.kill(caller, signal.SIGSTOP)  # it must not answer before it is killed
    service.send(number(1, 6) + number(2, 1) + text(5, notice))
    at(script.decode())
    answer = fields(service.recv(4096))
    assert answer[1] == [6] and answer[3] == [1], answer

assert sys.argv[1] == 'swrk'
service = socket.socket(fileno=int(sys.argv[2]))
at('called')
request = fields(service.recv(65536))
kind, options = request[1][0], fields(request[2][0])
# Not by its path: the caller's may be another directory here.
def directory(option):
    fd = os.open('/proc/%d/fd/%d' % (caller, options[option][0]), os.O_RDONLY | os.O_DIRECTORY)
    return '/proc/self/fd/%d' % fd

images = directory(1)
work = directory(17) if 17 in options else images
say = {
    'kind': kind, 'root': options[13][0].decode(),
    'flags': sorted(field for field, values in options.items() if values == [1]),
    'mounts': [{k: v[0].decode() for k, v in fields(m).items()} for m in options.get(23, [])],
    'groups': [fields(g)[2][0].decode() for g in options.get(25, [])],
    'mode': options[34][0],
}
with open(images + '/criu.log', 'w') as log:
    json.dump(say, log)
if os.path.exists(images + '/fail') or 'CRIU_FAIL' in os.environ:
    with open(work + '/' + options[10][0].decode(), 'w') as log:
        log.write('(00.1) fine\n(00.2) Error (criu/x.c:1): the reason\n(00.3) Error (late)\n')
    service.send(number(1, kind) + number(2, 0) + number(7, 22))
    sys.exit(1)
at('asked')
if kind == 1:
    tell(b'pre-dump', 0)
    group = options[44][0].decode()
    file, on, off = next(one for one in [
        ('/cgroup.freeze', '1', '0'), ('/freezer.state', 'FROZEN', 'THAWED'),
    ] if os.path.exists(group + one[0]))
    with open(group + file, 'w', buffering=1) as freezer:
        freezer.write(on + '\n')
        try:
            at('frozen')
            tell(b'network-lock', 0)
            tell(b'post-dump', 0)
        finally:
            freezer.write(off + '\n')
if kind == 1 and 3 not in options:
    os.kill(options[2][0], signal.SIGKILL)
    at('saved')
made = []
if kind == 2:
    name = '%06x' % os.getpid()
    made = [work + '/.criu.cgyard.' + name, '/tmp/.criu.mntns.' + name]
    for path in made:
        os.mkdir(path)
    with open(work + '/' + options[10][0].decode(), 'w') as log:
        log.write('(00.1) cg: Opening .criu.cgyard.%s as cg yard\n' % name)
        log.write('(00.2) mnt: Start with 0:/tmp/.criu.mntns.%s\n' % name)
    CLONE_PARENT, CLONE = 0x8000, {'x86_64': 56, 'aarch64': 220}[os.uname().machine]
    pid = ctypes.CDLL(None).syscall(CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        service.close()
        os.execv('/bin/sh', ['sh', '-c', os.environ.get('CRIU_RESTORED', 'exec sleep 1000')])
    try:
        at('made')
        tell(b'post-restore', pid)
    except:
        os.kill(pid, signal.SIGKILL)
        for path in made:
            os.rmdir(path)
        raise
    at('agreed')
for path in made:
    os.rmdir(path)
service.send(number(1, kind) + number(2, 1))
at('answered')
