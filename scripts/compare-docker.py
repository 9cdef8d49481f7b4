#!/usr/bin/env python3
"""Runs the command lines of tests/e2e/docker_table and compares what they print with what is
recorded there: what Docker's own engine says, and where ours says something else, that and why.

  scripts/compare-docker.py record [--corten BINARY] [--newer DOCKERD] [TABLE…]
      asks Docker's engine (Debian's docker.io, started in network and mount namespaces of its
      own) and writes its answers into the tables. Needs root. With --newer it asks another
      Docker engine (one of today's, built from its sources) instead, changes nothing but the
      reason of rows where that one agrees with ours, and prints where it does not.
  scripts/compare-docker.py check --cli CLI [--write] TABLE…
      runs them with a command line (docker or corten) against the engine that DOCKER_HOST or
      CORTEN_ROOT names, which must have the image alpine and nothing else. Prints what is not
      as recorded and fails then. --write puts it into the tables instead: who does that says why.

A table is a list of command lines (`$ …`, for bash) with their answer, each line of which begins
with ` `, `-` (only Docker's engine) or `+` (only ours), then `|` (standard output), `!` (standard
error) or `=` (exit status, when it is not 0). `? …` says why they differ: `? 28` that Docker
28.2.2's engine answers as ours, `? later: …` that it is being made and not compared until then,
`? cli: …` that our own command line words it otherwise (this row is for Docker's). Ids, times,
addresses and the like are replaced by their kind. Command lines may use `shape` (paths and values
of JSON documents), `until_ok COMMAND…` (polls), `events ARGUMENT…` (those between the moments in
the files `began` and `ended`), the free ports $PORT, $PORT1, $PORT2, and the free networks
$NET0.0/24 to $NET3.0/24 and $NET6::/64."""
import difflib, glob, importlib.util, json, os, random, re, shutil, socket, subprocess
import sys, tempfile, time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
TABLES = os.path.join(HERE, "../tests/e2e/docker_table")
PATIENCE = 60
PRELUDE = r"""
until_ok() {
  for _ in $(seq 600); do "$@" >/dev/null 2>&1 && return; sleep 0.05; done
  echo "not in time: $*" >&2; return 1
}
events() { docker events --since "$(cat began)" --until "$(cat ended)" "$@"; }
shape() { python3 "$COMPARE_DOCKER" shape "$@"; }
"""
LATER = "later: "
CLI = "cli: "
NEWER = "28"


def unified(one, other):
    """Lines of both in order, with ` `, `-` or `+` before them."""
    out = []
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    for what, a, b, c, d in matcher.get_opcodes():
        if what == "equal":
            out += [" " + line for line in one[a:b]]
        else:
            out += ["-" + line for line in one[a:b]] + ["+" + line for line in other[c:d]]
    return out


class Row:
    def __init__(self, command):
        self.command, self.lines, self.reasons = command, [], []

    def side(self, without):
        return [line[1:] for line in self.lines if line[0] != without]

    def theirs(self):
        return self.side("+")

    def ours(self):
        return self.side("-")

    def waits(self):
        """What it is about is being made: ours answers anyhow until then."""
        return any(reason.startswith(LATER) for reason in self.reasons)

    def not_cli(self):
        """Our command line has words of its own: this is about the engine."""
        return any(reason.startswith(CLI) for reason in self.reasons)

    def set(self, theirs, ours):
        self.lines = unified(theirs, ours)
        if self.waits():
            return
        cli = [reason for reason in self.reasons if reason.startswith(CLI)]
        if all(line[0] == " " for line in self.lines):
            self.reasons = cli
        elif self.reasons == cli:
            self.reasons = ["TODO", *cli]


class Table:
    def __init__(self, path):
        self.path, self.name = path, os.path.basename(path).split(".")[0]
        self.items = []
        for line in open(path).read().splitlines():
            if line.startswith("$ "):
                self.items.append(Row(line[2:]))
            elif line.startswith("? "):
                self.rows()[-1].reasons.append(line[2:])
            elif line[:2] and line[0] in " +-" and line[1:2] in ("|", "!", "="):
                self.rows()[-1].lines.append(line)
            elif line:
                if not line.startswith("#"):
                    sys.exit(f"{path}: what is this line: {line}")
                self.items.append(line)

    def rows(self):
        return [item for item in self.items if isinstance(item, Row)]

    def write(self):
        out = []
        for at, item in enumerate(self.items):
            if isinstance(item, str):
                if at and isinstance(self.items[at - 1], Row):
                    out.append("")
                out.append(item)
            else:
                out.append("$ " + item.command)
                out += item.lines
                out += ["? " + reason for reason in item.reasons]
        open(self.path, "w").write("\n".join(out) + "\n")


def normal(text, names):
    """`names`: paths and ports that differ from run to run. Digits of a port may be part of an id."""
    for path, name in names:
        text = re.sub(r"(?<![0-9a-f])" + re.escape(path) + r"(?![0-9a-f])", name, text)
    for pattern, kind in [
        (r"\b[0-9a-f]{64}\b", "<64>"),
        (r"\b[0-9a-f]{12}\b", "<12>"),
        (r"\b(?!0001-01-01)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "<time>"),
        (r"\b(?!0001-01-01)\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? [+-]\d{4} [A-Z]+", "<time>"),
        (r"\b1\d{9}(\d{9})?\b", "<epoch>"),
        (r"([Ll]ess than a second|About a minute|About an hour|\d+ (second|minute|hour)s?) ago",
         "<age>"),
        (r"Up (Less than a second|About a minute|\d+ (second|minute)s?)", "Up <age>"),
        (r"\b(172|192\.168|10)(\.\d+){2,3}\.\d+\b", "<ip>"),
        (r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b", "<mac>"),
        (r"\b0\.01 to \d+\.00, as there are only \d+ CPUs", "0.01 to N, as there are only N CPUs"),
        (r"(?<=available: )[0-9,-]+", "<cpus>"),
        (r"on endpoint \S+ \(<64>\)", "on endpoint <endpoint>"),
        (r" {2,}", "  "),
        (r" +$", ""),
    ]:
        text = re.sub(pattern, kind, text, flags=re.M)
    return text


def free_ports(count):
    """The first of some ports in a row, below those that the kernel gives out itself."""
    while True:
        first = random.randrange(20000, 30000)
        sockets = [socket.socket() for _ in range(count)]
        try:
            for at, one in enumerate(sockets):
                one.bind(("0.0.0.0", first + at))
            return first
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()


def free_nets():
    """Four /24s in a row that nobody here routes, by their first three numbers."""
    while True:
        second, third = random.randrange(192, 256), random.randrange(0, 256, 4)
        routes = subprocess.run(["ip", "-4", "route"], capture_output=True, text=True).stdout
        if not re.search(rf"^10\.{second}\.", routes, flags=re.M):
            return [f"10.{second}.{third + n}" for n in range(4)]


class Runner:
    """A directory with the command line as `docker`, and how rows are run with it."""

    def __init__(self, cli, names, env):
        self.dir = tempfile.mkdtemp(prefix="table-", dir=os.environ.get("TMPDIR"))
        os.makedirs(self.dir + "/bin")
        os.makedirs(self.dir + "/here")
        os.symlink(shutil.which(cli), self.dir + "/bin/docker")
        open(self.dir + "/prelude", "w").write(PRELUDE)
        port = free_ports(3)
        ports = [(str(port + 1), "<port1>"), (str(port + 2), "<port2>"), (str(port), "<port>")]
        nets, net6 = free_nets(), f"fd00:{random.randrange(4096, 65536):x}"
        self.names = [(self.dir + "/here", "<here>"), *names, *ports, (net6, "<net6>")]
        env = dict(env, PORT=str(port), PORT1=str(port + 1), PORT2=str(port + 2), NET6=net6,
                   **{f"NET{n}": net for n, net in enumerate(nets)})
        self.env = dict(os.environ, BASH_ENV=self.dir + "/prelude", LC_ALL="C.UTF-8", TZ="UTC",
                        PATH=self.dir + "/bin:" + os.environ["PATH"], DOCKER_BUILDKIT="0",
                        COMPARE_DOCKER=os.path.abspath(__file__), DOCKER_CLI_HINTS="false", **env)

    def run(self, command):
        try:
            done = subprocess.run(["bash", "-c", command], env=self.env, cwd=self.dir + "/here",
                                  stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired as late:
            return [f"!not within {PATIENCE} s: {late.stdout!r} {late.stderr!r}"]
        lines = [f"={done.returncode}"] if done.returncode else []
        for sign, told in (("|", done.stdout), ("!", done.stderr)):
            told = normal(told.decode(errors="replace"), self.names)
            lines += [sign + line for line in told.splitlines()]
        return lines

    def close(self):
        shutil.rmtree(self.dir, ignore_errors=True)


def shape():
    """Paths and values of a JSON document, a line each, sorted by path."""
    found = []

    def walk(path, value):
        if isinstance(value, dict) and value:
            for key in value:
                walk(f"{path}.{key}", value[key])
        elif isinstance(value, list) and value:
            for at, entry in enumerate(value):
                walk(f"{path}[{at}]", entry)
        else:
            found.append(f"{path or '.'} = {json.dumps(value, ensure_ascii=False)}")
    told, at = sys.stdin.read().strip(), 0
    while at < len(told):
        document, at = json.JSONDecoder().raw_decode(told, at)
        at += len(told[at:]) - len(told[at:].lstrip())
        walk("", document)
    print("\n".join(sorted(found)))


def check(arguments):
    write = "--write" in arguments
    cli = arguments[arguments.index("--cli") + 1]
    paths = [a for a in arguments if not a.startswith("--") and a != cli]
    root = os.environ.get("TABLE_ROOT") or os.environ.get("CORTEN_ROOT") or "/nowhere"
    runner = Runner(cli, [(root, "<root>")], {})
    own = os.path.basename(shutil.which(cli)) == "corten"
    wrong = count = 0
    try:
        for path in paths:
            table = Table(path)
            for row in table.rows():
                began = time.time()
                got = runner.run(row.command)
                count += 1
                if row.waits():
                    if got == row.theirs():
                        print(f"{table.name}: $ {row.command}\n  is as Docker's now")
                    continue
                if os.environ.get("TABLE_TIMES"):
                    print(f"{time.time() - began:.2f} {row.command}")
                said = [r for r in row.reasons if r != "TODO" and not r.startswith(CLI)]
                unsaid = row.ours() != row.theirs() and not said
                if got == row.ours() and not unsaid or row.not_cli() and own:
                    continue
                wrong += 1
                print(f"{table.name}: $ {row.command}")
                for line in unified(row.ours(), got):
                    print("  " + line)
                if unsaid:
                    print("  (and nobody says why it differs from Docker's)")
                row.set(row.theirs(), got)
            if write:
                table.write()
    finally:
        runner.close()
    print(f"{count} command lines, {wrong} not as recorded")
    sys.exit(bool(wrong))


def base_image(corten, work):
    """The archive of the tests' image, as the tests make it."""
    spec = importlib.util.spec_from_file_location("builders", HERE + "/compare-builders.py")
    builders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builders)
    context = work + "/alpine"
    os.makedirs(context)
    open(context + "/rootfs.tar", "wb").write(builders.base_tar())
    open(context + "/Dockerfile", "w").write(
        'FROM scratch\nADD rootfs.tar /\nENV PATH=/bin:/usr/bin\nCMD ["/bin/sh"]\n')
    ours = [corten, "--root", work + "/corten"]
    subprocess.run([*ours, "build", "-q", "-t", "alpine", context], check=True,
                   stdout=subprocess.DEVNULL)
    subprocess.run([*ours, "save", "-o", work + "/alpine.tar", "alpine"], check=True)
    subprocess.run([*ours, "system", "reset", "--force"], check=True, stdout=subprocess.DEVNULL)


def compare_newer(table, runner):
    """Says of rows that differ from the old engine whether they agree with the newer one."""
    agreed = differ = 0
    for row in table.rows():
        got = runner.run(row.command)
        if row.waits():
            continue
        cli = [reason for reason in row.reasons if reason.startswith(CLI)]
        if got == row.ours():
            agreed += 1
            if row.ours() != row.theirs():
                row.reasons = [NEWER, *cli]
            continue
        differ += 1
        if NEWER in row.reasons:
            row.reasons = ["TODO", *cli]
        told = "; ".join(row.reasons) or "as the old one"
        print(f"{table.name}: $ {row.command}   [{told}]")
        for line in unified(got, row.ours()):
            print("  " + line)
    print(f"{table.name}: {agreed} as the newer engine, {differ} not", flush=True)


def record(arguments):
    if "COMPARE_INSIDE" not in os.environ:
        os.environ["COMPARE_INSIDE"] = "1"
        os.execvp("unshare", ["unshare", "-n", "-m", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    corten = "corten"
    if "--corten" in arguments:
        at = arguments.index("--corten")
        corten = arguments[at + 1]
        del arguments[at:at + 2]
    daemon, newer = "dockerd", "--newer" in arguments
    if newer:
        at = arguments.index("--newer")
        daemon = arguments[at + 1]
        del arguments[at:at + 2]
    paths = arguments or sorted(glob.glob(TABLES + "/*.table"))
    work = tempfile.mkdtemp(prefix="compare-", dir=os.environ.get("TMPDIR"))
    host = f"unix://{work}/docker.sock"
    env = {"DOCKER_HOST": host, "DOCKER_CONFIG": work + "/config"}
    log = open(work + "/dockerd.log", "w")
    dockerd = runner = None
    try:
        base_image(corten, work)
        dockerd = subprocess.Popen(
            [daemon, "--data-root", work + "/docker", "--exec-root", work + "/docker-exec",
             "-H", host, "--pidfile", work + "/docker.pid"], stdout=log, stderr=log)
        runner = Runner("docker", [(work + "/docker", "<root>")], env)
        runner.run("until_ok docker info")
        for path in paths:
            runner.run("docker rm -fv $(docker ps -aq); docker volume rm $(docker volume ls -q); "
                       "docker network prune -f; docker rmi -f $(docker images -aq)")
            loaded = runner.run(f"docker load -q -i {work}/alpine.tar")
            if loaded[0][0] != "|":
                sys.exit(f"the image cannot be loaded: {loaded}")
            table = Table(path)
            if newer:
                compare_newer(table, runner)
                table.write()
                continue
            for row in table.rows():
                before = row.theirs()
                got = runner.run(row.command)
                # What is ours follows where the two were the same.
                ours = got if before == row.ours() or row.waits() else row.ours()
                if got != before and before:
                    print(f"{table.name}: $ {row.command}")
                    for line in unified(before, got):
                        print("  " + line)
                row.set(got, ours)
            table.write()
            print(f"{table.name}: {len(table.rows())} command lines", flush=True)
        runner.run("docker rm -fv $(docker ps -aq)")
    finally:
        if runner:
            runner.close()
        if dockerd:
            dockerd.terminate()
            dockerd.wait()
        for line in reversed(open("/proc/self/mounts").read().splitlines()):
            point = line.split()[1]
            if point.startswith(work):
                subprocess.run(["umount", point])
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    what = {"record": record, "check": check, "shape": lambda _: shape()}.get(
        sys.argv[1] if len(sys.argv) > 1 else "")
    if not what:
        sys.exit(__doc__)
    what(sys.argv[2:])
