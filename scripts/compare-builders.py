#!/usr/bin/env python3
"""Builds every case of tests/e2e/dockerfiles with other builders, and compares what comes of it
with what is recorded there (which is Corten's): files with modes and owners, configuration,
whether it fails. Needs root, and whichever of docker.io (20.10: the classic builder and BuildKit)
and buildah are installed. Everything happens in network and mount namespaces of its own.

  scripts/compare-builders.py [--only NAME,…] [--keep FILE] [PEER…]   PEER: docker buildkit buildah

Differences that a case explains (`== differs PEER why`) are counted by themselves. Times of files
are compared with BuildKit's alone, those of directories with nobody's; what a peer leaves of its
own mounts in every image is passed over. --keep FILE builds only what is not in FILE yet."""
import glob, hashlib, http.server, io, json, os, re, shutil, socket
import stat, subprocess, sys, tarfile, tempfile, threading, time

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = os.path.join(HERE, "../tests/e2e/dockerfiles/cases")
THEN = 981173106
CONFIG = ["User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels",
          "StopSignal", "Healthcheck", "Shell", "OnBuild"]


class Case:
    def __init__(self, path):
        self.name = os.path.basename(path)[:-5]
        text, _, expected = open(path, newline="").read().partition("\n== expect\n")
        asked = re.sub(r"^== differs .*\n?", "", text + "\n", flags=re.M)
        self.key = hashlib.sha256(asked.rstrip().encode()).hexdigest()
        self.parts, self.differs = [], {}
        for line in (text.rstrip("\n") + "\n").splitlines(keepends=True):
            if line.startswith("== "):
                words = line[3:].split()
                if words[0] == "differs":
                    self.differs[words[1]] = " ".join(words[2:])
                    self.parts.append((["differs"], []))
                else:
                    self.parts.append((words, []))
            elif self.parts:
                self.parts[-1][1].append(line)
        self.fails = expected.startswith("exit ")
        self.files, self.config = {}, {}
        for line in expected.splitlines():
            if line.startswith("/"):
                # Names may have spaces: the mode is the first word that is one.
                found = re.match(r"(/.*?) (gone|(?:-|[0-7]+) \d+:\d+.*)$", line)
                self.files[found[1]] = found[2]
            elif "=" in line and not self.fails:
                key, _, value = line.partition("=")
                self.config[key] = parse(value)
        self.expected = expected

    def lay(self, top, url):
        context = os.path.join(top, "context")
        os.makedirs(context)
        flags = []
        for words, lines in self.parts:
            content = "".join(lines).replace("{url}", url)
            kind, rest = words[0], words[2:]
            if kind == "differs":
                continue
            if kind == "flags":
                flags += [line.replace("{dir}", top) for line in content.splitlines()]
                continue
            name = words[1] if len(words) > 1 else "Dockerfile"
            path = os.path.join(top if kind == "outside" else context, name.replace("%20", " "))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if kind in ("Dockerfile", "outside"):
                open(path, "w").write(content)
            elif kind in ("file", "dir"):
                if kind == "dir":
                    os.makedirs(path, exist_ok=True)
                else:
                    for written, meant in (("\\r", "\r"), ("\\0", "\0"), ("\\ufeff", "\ufeff")):
                        content = content.replace(written, meant)
                    open(path, "w", newline="").write(content)
                if len(rest) > 1:
                    os.chown(path, *map(int, rest[1].split(":")))
                default = 0o755 if kind == "dir" else 0o644
                os.chmod(path, int(rest[0], 8) if rest else default)
            elif kind == "link":
                os.symlink(rest[0], path)
            elif kind == "hardlink":
                os.link(os.path.join(context, rest[0]), path)
            elif kind == "fifo":
                os.mkfifo(path, 0o644)
            elif kind == "char":
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(*map(int, rest[0].split(":"))))
            elif kind == "socket":
                socket.socket(socket.AF_UNIX).bind(path)
            elif kind == "tar":
                age(context)
                subprocess.run(["tar", "-C", context, "--owner=0", "--group=0", rest[0], path,
                                *rest[1:]], check=True)
            elif kind == "remove":
                shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
            else:
                sys.exit(f"{self.name}: unknown part {words}")
        age(context)
        return context, flags


def age(top):
    for directory, dirs, files in os.walk(top):
        for name in dirs + files + ["."]:
            os.utime(os.path.join(directory, name), (THEN, THEN), follow_symlinks=False)


def parse(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def listing(layers):
    files = {}

    def remove(path):
        for other in [o for o in files if o == path or o.startswith(path + "/")]:
            del files[other]

    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            for member in archive:
                path = os.path.normpath("/" + member.name.lstrip("/"))
                parent, name = os.path.split(path)
                if name == ".wh..wh..opq":
                    for other in [o for o in files if o.startswith(parent.rstrip("/") + "/")]:
                        del files[other]
                    continue
                if name.startswith(".wh."):
                    remove(os.path.join(parent, name[4:]))
                    continue
                if path == "/":
                    continue
                if member.isdir():
                    what = "d"
                elif member.issym():
                    what = f"l {member.linkname}"
                elif member.islnk():
                    what = "same as /" + member.linkname.lstrip("./")
                elif member.isfifo():
                    what = "p"
                elif member.ischr():
                    what = f"c {member.devmajor}:{member.devminor}"
                else:
                    content = archive.extractfile(member).read()
                    try:
                        text = content.decode()
                    except UnicodeDecodeError:
                        text = None
                    if text is None or len(content) > 2000:
                        what = f"f {len(content)} bytes"
                    else:
                        what = "f " + json.dumps(text, ensure_ascii=False)
                if not member.isdir():
                    remove(path)
                mode = "-" if member.issym() else f"{member.mode & 0o7777:o}"
                kept = " kept" if int(member.mtime) == THEN else ""
                files[path] = f"{mode} {member.uid}:{member.gid}{kept} {what}"
    return files


def image(archive):
    with tarfile.open(archive) as tar:
        def content(name):
            member = tar.getmember(name)
            while member.issym():
                member = tar.getmember(os.path.normpath(
                    os.path.join(os.path.dirname(member.name), member.linkname)))
            return tar.extractfile(member).read()
        manifest = json.loads(content("manifest.json"))[0]
        config = json.loads(content(manifest["Config"])).get("config") or {}
        layers = [content(name) for name in manifest["Layers"]]
    labels = config.get("Labels") or {}
    labels.pop("io.buildah.version", None)
    return listing(layers), {k: config[k] for k in CONFIG if config.get(k)}


def base_tar():
    out = io.BytesIO()
    tar = tarfile.open(fileobj=out, mode="w")

    def add(name, kind, mode, content=b"", target=""):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.size, info.linkname = kind, mode, len(content), target
        tar.addfile(info, io.BytesIO(content))
    harness = open(os.path.join(HERE, "../tests/e2e/harness.rs")).read()
    for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777),
                       ("usr/bin", 0o755)):
        add(name, tarfile.DIRTYPE, mode)
    for name in ("passwd", "group"):
        found = re.search(rf'let {name} = "(.*)";', harness)[1]
        add("etc/" + name, tarfile.REGTYPE, 0o644, found.replace("\\n", "\n").encode())
    add("bin/busybox", tarfile.REGTYPE, 0o755, open("/bin/busybox", "rb").read())
    applets = re.search(r"for applet in \[(.*?)\] \{", harness, re.S)[1]
    for applet in re.findall(r'"(.*?)"', applets):
        add("bin/" + applet, tarfile.SYMTYPE, 0o777, target="/bin/busybox")
    tar.close()
    return out.getvalue()


def run(command, **more):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, timeout=120, **more)


class Docker:
    def __init__(self, work, buildkit):
        self.buildkit, self.work = buildkit, work
        self.cli = ["/usr/bin/docker", "-H", f"unix://{work}/docker.sock"]
        self.env = dict(os.environ, DOCKER_BUILDKIT="1" if buildkit else "0",
                        DOCKER_CONFIG=work + "/config")

    def load(self, tar):
        subprocess.run([*self.cli, "import", "-c", "ENV PATH=/bin:/usr/bin", "-c",
                        'CMD ["/bin/sh"]', "-", "alpine:latest"], input=tar, check=True,
                       stdout=subprocess.DEVNULL)

    def build(self, context, flags, out):
        command = [*self.cli, "build", "--no-cache", "-t", "case", *flags, context]
        if self.buildkit:
            command += ["--progress=plain"]
        done = run(command, env=self.env)
        if done.returncode == 0:
            run([*self.cli, "save", "-o", out, "case"]).check_returncode()
            run([*self.cli, "rmi", "case"])
        return done


class Buildah:
    def __init__(self, work):
        self.cli = ["buildah", "--root", work + "/buildah", "--runroot", work + "/buildah-run"]

    def load(self, tar):
        with tempfile.TemporaryDirectory() as top:
            open(top + "/root.tar", "wb").write(tar)
            open(top + "/Dockerfile", "w").write(
                'FROM scratch\nADD root.tar /\nENV PATH=/bin:/usr/bin\nCMD ["/bin/sh"]\n')
            run([*self.cli, "bud", "--isolation", "chroot", "-t", "docker.io/library/alpine",
                 top]).check_returncode()

    def build(self, context, flags, out):
        done = run([*self.cli, "bud", "--isolation", "chroot", "--format", "docker",
                    "--pull-never", "-t", "case", *flags, context])
        if done.returncode == 0:
            run([*self.cli, "push", "case", f"docker-archive:{out}:case"]).check_returncode()
        run([*self.cli, "rmi", "-f", "case"])
        return done


# What peers leave where they mount something of their own.
STUBS = ["/usr", "/dev", "/proc", "/sys", "/run", "/run/secrets", "/etc/hosts", "/etc/resolv.conf",
         "/etc/hostname", "/dev/console", "/dev/pts", "/dev/shm"]


def differences(case, got, base, times):
    files, config = got
    files = {p: l for p, l in files.items() if p not in STUBS or p in base}

    def plain(line):
        return line if times and not line.endswith(" d") else line.replace(" kept", "", 1)
    theirs = {p: plain(l) for p, l in files.items() if base.get(p) != l}
    theirs.update({p: "gone" for p in base if p not in files})
    ours = {p: plain(l) for p, l in case.files.items() if p not in STUBS}
    found = []
    for path in sorted(set(ours) | set(theirs)):
        if ours.get(path) != theirs.get(path):
            found.append(f"{path}: ours {ours.get(path)}, theirs {theirs.get(path)}")
    # Ours is the base that Corten builds: an image of scratch is in / from the beginning.
    root = ("WorkingDir", "/")
    mine = {k: v for k, v in case.config.items() if k in CONFIG and (k, v) != root}
    config = {k: v for k, v in config.items() if (k, v) != root}
    for key in sorted(set(mine) | set(config)):
        if mine.get(key) != config.get(key):
            found.append(f"{key}: ours {mine.get(key)}, theirs {config.get(key)}")
    return found


def outcome(builder, case, work, url):
    """Files and configuration, or why it fails."""
    # A directory of its own: BuildKit takes files of the same name, size and time for the same.
    top, out = os.path.join(work, case.name), os.path.join(work, "out.tar")
    context, flags = case.lay(top, url)
    try:
        done = builder.build(context, flags, out)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        shutil.rmtree(top)
    if done.returncode != 0:
        return (done.stdout.decode(errors="replace").strip().splitlines() or [""])[-1]
    got = image(out)
    os.remove(out)
    return got


def main():
    if "COMPARE_INSIDE" not in os.environ:
        os.environ["COMPARE_INSIDE"] = "1"
        os.execvp("unshare", ["unshare", "-n", "-m", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    arguments = sys.argv[1:]
    keep = None
    if "--keep" in arguments:
        at = arguments.index("--keep")
        keep = arguments[at + 1]
        del arguments[at:at + 2]
    kept = json.load(open(keep)) if keep and os.path.exists(keep) else {}
    only = None
    if "--only" in arguments:
        at = arguments.index("--only")
        only = arguments[at + 1].split(",")
        del arguments[at:at + 2]
    wanted = [a for a in arguments if not a.startswith("--")] or ["docker", "buildkit", "buildah"]
    work = tempfile.mkdtemp(prefix="compare-", dir=os.environ.get("TMPDIR"))
    dockerd = None
    failed = False
    try:
        os.makedirs(work + "/site")
        os.makedirs(work + "/config")
        open(work + "/site/file.txt", "w").write("from afar\n")
        os.utime(work + "/site/file.txt", (784111777, 784111777))
        handler = lambda *a: Quiet(*a, directory=work + "/site")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        if {"docker", "buildkit"} & set(wanted):
            log = open(work + "/dockerd.log", "w")
            dockerd = subprocess.Popen(
                ["dockerd", "--data-root", work + "/docker", "--exec-root", work + "/docker-exec",
                 "-H", f"unix://{work}/docker.sock", "--pidfile", work + "/docker.pid"],
                stdout=log, stderr=log)
            for _ in range(300):
                if os.path.exists(work + "/docker.sock"):
                    break
                time.sleep(0.1)
        tar = base_tar()
        cases = [Case(path) for path in sorted(glob.glob(CASES + "/*.case"))]
        cases = [case for case in cases if not only or case.name in only]
        for peer in wanted:
            builder = Buildah(work) if peer == "buildah" else Docker(work, peer == "buildkit")
            builder.load(tar)
            base = listing([tar])
            agree, explained, unexplained, stale = 0, [], [], []
            for case in cases:
                name = f"{peer} {case.key}"
                if name not in kept:
                    kept[name] = outcome(builder, case, work, url)
                    if keep:
                        json.dump(kept, open(keep, "w"))
                got = kept[name]
                if isinstance(got, str):
                    found = [] if case.fails else ["it fails: " + got]
                elif case.fails:
                    found = ["it succeeds"]
                else:
                    found = differences(case, got, base, peer == "buildkit")
                if not found:
                    agree += 1
                    if peer in case.differs:
                        stale.append(case.name)
                elif peer in case.differs:
                    explained.append(case.name)
                else:
                    unexplained.append(case.name)
                    print(f"{peer} {case.name}:\n  " + "\n  ".join(found), flush=True)
            print(f"{peer}: {agree} agree, {len(explained)} differ as explained, "
                  f"{len(unexplained)} differ", flush=True)
            if stale:
                print(f"{peer}: explained, but the same: {' '.join(stale)}")
            failed |= bool(unexplained)
    finally:
        if dockerd:
            dockerd.terminate()
            dockerd.wait()
        for line in reversed(open("/proc/self/mounts").read().splitlines()):
            point = line.split()[1]
            if point.startswith(work):
                subprocess.run(["umount", point])
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(failed)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


if __name__ == "__main__":
    main()
