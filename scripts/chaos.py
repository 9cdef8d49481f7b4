#!/usr/bin/env python3
"""Clients that run, stop, kill, pause, look into and remove the same few containers at once, connect
them to the same few networks and away again, make and remove those, half of it through `corten
serve`, while command lines, supervisors and the server are killed with -9 at random. Afterwards
nothing may be wrong: `system check` finds nothing, what is told of each container and of its networks
is true, and no link, address, rule or row is left once all are removed. Needs root.

  scripts/chaos.py --corten BINARY [--minutes N | --seconds N] [--clients N] [--seed N] [--root DIR]

Without --root it makes an engine and the tests' image; with it there must be the image alpine.
The seed decides what the clients do, not how it meets. Prints what is wrong, and fails then."""
import argparse, hashlib, importlib.util, json, os, random, shutil, signal, sqlite3, subprocess
import sys, tempfile, threading, time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
# How long a command may take on a busy machine.
PATIENCE = 90
# What no command may say, whatever is killed around it.
NEVER = ["panicked at", "database is locked", "is damaged", "malformed", "not in time"]


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--corten", required=True)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--root")
    return parser.parse_args()


class Chaos:
    def __init__(self, asked, work):
        self.corten, self.root = os.path.abspath(asked.corten), os.path.realpath(asked.root)
        self.host = f"unix://{work}/chaos.sock"
        self.names = [f"box{n}" for n in range(max(2, asked.clients))]
        # The first two stay, so that there is something to connect to; the others come and go.
        self.networks = [f"net{n}" for n in range(4)]
        self.over = threading.Event()
        self.wrong, self.counts, self.lock = [], {}, threading.Lock()
        self.server = None
        base = {k: v for k, v in os.environ.items()
                if k not in ("DOCKER_HOST", "DOCKER_CONTEXT", "RUST_LOG")}
        self.env = dict(base, CORTEN_ROOT=self.root, DOCKER_CONFIG=work + "/config")

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def complain(self, text):
        with self.lock:
            self.wrong.append(text)
        print(text, flush=True)

    def run(self, *args, kill_after=None, served=False):
        """Exit status and what was said; a killed one has none."""
        env = dict(self.env, DOCKER_HOST=self.host) if served else self.env
        child = subprocess.Popen([self.corten, *args], env=env, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            said = child.communicate(timeout=kill_after or PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            said = child.communicate()
            if kill_after is None:
                self.complain(f"not within {PATIENCE} s: {' '.join(args)}: {said}")
            return None, said
        for text in NEVER:
            if text in said[0] + said[1]:
                self.complain(f"{' '.join(args)}: {said}")
        return child.returncode, said

    def client(self, seed):
        rng = random.Random(seed)
        while not self.over.is_set():
            name = rng.choice(self.names)
            rm = ["--rm"] if rng.random() < 0.3 else []
            network, passing = rng.choice(self.networks), rng.choice(self.networks[2:])
            v6 = ["--ipv6"] if rng.random() < 0.3 else []
            alias = ["--alias", "a"] if rng.random() < 0.3 else []
            force = ["-f"] if rng.random() < 0.3 else []
            args = rng.choice([
                ["run", "-d", "--name", name, *rm, "alpine", "sleep", "1000"],
                ["run", "-d", "--name", name, *rm, "-p", "80", "alpine", "sleep", "1000"],
                ["run", "-d", "--name", name, "--restart", "always", "alpine", "sleep", "0.2"],
                ["run", "-d", "--name", name, "--restart", "on-failure:2", "alpine", "false"],
                ["run", "--name", name, *rm, "--network", "none", "alpine", "sh", "-c", "exit 3"],
                ["create", "--name", name, "-v", "/anon", "alpine", "sleep", "1000"],
                ["run", "-d", "--name", name, *rm, "--network", network, "alpine", "sleep", "1000"],
                ["create", "--name", name, *rm, "--network", network, "-p", "80", "alpine", "sleep",
                 "1000"],
                ["network", "connect", *alias, network, name],
                ["network", "connect", network, name],
                ["network", "disconnect", *force, network, name],
                ["network", "disconnect", "bridge", name], ["network", "connect", "bridge", name],
                ["network", "create", *v6, passing], ["network", "rm", passing],
                ["network", "inspect", network],
                ["update", "--memory", "64m", "--memory-swap", "-1", name],
                ["port", name], ["stats", "--no-stream", name], ["diff", name],
                ["start", name], ["stop", "-t", "0", name], ["stop", "-t", "1", name],
                ["kill", name], ["kill", "-s", "TERM", name], ["restart", "-t", "0", name],
                ["pause", name], ["unpause", name], ["exec", name, "true"],
                ["exec", "-d", name, "sleep", "5"], ["logs", name], ["inspect", name],
                ["ps", "-a"], ["top", name], ["rename", name, rng.choice(self.names)],
                ["rm", "-f", "-v", name], ["rm", "-f", name], ["rm", name],
            ])
            killed = rng.uniform(0.001, 0.15) if rng.random() < 0.2 else None
            code, _ = self.run(*args, kill_after=killed, served=rng.random() < 0.5)
            what = " ".join(args[:2] if args[0] == "network" else args[:1])
            self.count(what + ("" if code == 0 else " killed" if code is None else " refused"))

    def serve(self):
        if os.path.exists(self.host[7:]):
            os.remove(self.host[7:])
        return subprocess.Popen([self.corten, "serve", "-H", self.host], env=self.env,
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)

    def killer(self, seed):
        rng = random.Random(seed)
        turn = 0
        while not self.over.wait(rng.uniform(0.1, 0.8)):
            turn += 1
            if turn % 3 == 1:
                self.server.kill()
                self.server.wait()
                self.server = self.serve()
                self.count("serve killed -9")
                continue
            found = list(self.supervisors())
            if found:
                try:
                    os.kill(rng.choice(found)[0], signal.SIGKILL)
                    self.count("supervisor killed -9")
                except ProcessLookupError:
                    pass

    def supervisors(self):
        """Pid and container of each supervisor of this engine."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = open(f"/proc/{pid}/cmdline", "rb").read().decode().split("\0")
            except (OSError, UnicodeDecodeError):
                continue
            if "supervise" in words[:2] and self.root in words:
                ids = [word for word in words if len(word) == 64]
                yield int(pid), ids[0] if ids else ""

    def untruth(self, id):
        """What is told of a container and is not so."""
        code, (told, said) = self.run("inspect", id)
        if code:
            # Removed meanwhile, by its own --rm.
            return None if "No such" in said else f"inspect: {said}"
        state = json.loads(told)[0]["State"]
        lives = [pid for pid, of in self.supervisors() if of == id]
        if state["Running"] and not lives:
            return f"is said to run, and nobody supervises it: {state}"
        if lives and not state["Running"]:
            return f"is said not to run, and {lives} supervises it: {state}"
        if state["Status"] in ("running", "paused"):
            if not os.path.exists(f"/proc/{state['Pid']}"):
                return f"runs without its process: {state}"
        if state["Status"] == "running":
            code, (links, said) = self.run("exec", id, "ip", "-o", "addr")
            if code:
                return f"is said to run, and cannot be entered: {said}"
            wrong = self.other_places(told, links)
            # Who was killed before it told the supervisor leaves it so until the next change; a
            # check must know.
            if wrong and f"endpoint {id}:" in self.run("system", "check")[1][0]:
                self.count("out of line, and told so")
                return None
            return wrong
        return None

    def other_places(self, told, links):
        """Where a running container says it is on other networks than it is."""
        settings = json.loads(told)[0]
        if settings["HostConfig"]["NetworkMode"] in ("none", "host"):
            return None
        said = {place[key] for place in settings["NetworkSettings"]["Networks"].values()
                for key in ("IPAddress", "GlobalIPv6Address") if place[key]}
        had = {words[3].split("/")[0] for words in map(str.split, links.splitlines())
               if len(words) > 3 and words[1] != "lo" and not words[3].startswith("fe80:")}
        return None if said == had else f"says it has {sorted(said)}, and has {sorted(had)}"

    def states(self):
        """Complains of each container of which something untrue is told. One that ends or
        begins at this moment may be caught between two looks: it is looked at again."""
        _, (told, _) = self.run("ps", "-aq", "--no-trunc")
        known = told.split()
        for id in known:
            deadline = time.time() + 15
            while (wrong := self.untruth(id)) and time.time() < deadline:
                time.sleep(0.1)
            if wrong:
                self.complain(f"{id} {wrong}")
        for pid, of in self.supervisors():
            if of not in known:
                # One that removes its container is on its way out.
                deadline = time.time() + 10
                while os.path.exists(f"/proc/{pid}") and time.time() < deadline:
                    time.sleep(0.1)
                if os.path.exists(f"/proc/{pid}"):
                    self.complain(f"process {pid} supervises {of}, which nobody knows")

    def clean(self):
        self.run("system", "check", "--repair")
        code, said = self.run("system", "check")
        if code:
            self.complain(f"system check finds something after its sweep: {said}")

    def nothing_left(self, networks):
        """Without containers, and with so many networks that users made, nothing else is there."""
        hash = hashlib.sha256(self.root.encode()).hexdigest()
        deadline = time.time() + 10
        while True:
            links = [name for name in os.listdir("/sys/class/net")
                     if name.startswith(("crt" + hash[:4], "v" + hash[:4]))
                     and name != "crt" + hash[:8]]
            # The kernel takes its time over the links of what has just ended.
            if not links or time.time() > deadline:
                break
            time.sleep(0.2)
        for link in links:
            self.complain(f"left behind: link {link}")
        with sqlite3.connect(self.root + "/corten.db") as rows:
            for table, most in [("addresses", 0), ("endpoints", 0), ("endpoint_names", 0),
                                ("containers", 0), ("networks", networks)]:
                found = rows.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                if found > most:
                    self.complain(f"left behind: {found - most} rows of {table}")
        told = subprocess.run(["nft", "list", "table", "inet", "corten_" + hash[:8]],
                              capture_output=True, text=True).stdout
        for set in ("bridges", "talking", "internal", "published", "published6"):
            body = told.split(f" {set} {{")[1].split("}")[0] if f" {set} {{" in told else ""
            names = [word for word in body.replace(",", " ").split() if "crt" in word]
            if any(name.strip('"') != "crt" + hash[:8] for name in names):
                self.complain(f"left behind: {set} {names}")
            if set.startswith("published") and "elements" in body:
                self.complain(f"left behind: {set} {body}")

    def prune_networks(self):
        code, said = self.run("network", "prune", "-f")
        if code:
            self.complain(f"network prune: {said}")

    def all(self, asked):
        self.server = self.serve()
        for network in self.networks[:2]:
            self.run("network", "create", network)
        work = [threading.Thread(target=self.client, args=(asked.seed * 1000 + n,))
                for n in range(asked.clients)]
        work.append(threading.Thread(target=self.killer, args=(asked.seed * 1000 + 999,)))
        for thread in work:
            thread.start()
        self.over.wait(asked.seconds or asked.minutes * 60)
        # On a machine so slow that nothing lived yet, until something did.
        deadline = time.time() + PATIENCE
        while "supervisor killed -9" not in self.counts and time.time() < deadline:
            self.over.wait(0.2)
        self.over.set()
        for thread in work:
            thread.join()
        self.server.kill()
        self.server.wait()
        _, (history, _) = self.run("events", "--since", "2000-01-01", "--until", "0s", "--filter",
                                   "event=create", "--format", "{{.Actor.ID}}")
        # As the next command finds it: no sweep before.
        self.states()
        self.clean()
        _, (ids, _) = self.run("ps", "-aq")
        for id in ids.split():
            code, said = self.run("rm", "-f", "-v", id)
            if code and "No such container" not in said[1]:
                self.complain(f"rm -f {id}: {said}")
        self.prune_networks()
        self.clean()
        # The three that every engine has.
        self.nothing_left(3)
        return history.split()

    def left(self, ids):
        told = subprocess.run([HERE + "/leftovers.sh"], capture_output=True, text=True).stdout
        ours = [hashlib.sha256(self.root.encode()).hexdigest()[:8], self.root]
        ours += ["v" + id[:12] for id in ids] + ids
        for line in told.splitlines():
            if any(word in line for word in ours):
                self.complain(f"left behind: {line}")


def main():
    asked = options()
    work = tempfile.mkdtemp(prefix="chaos-", dir=os.environ.get("TMPDIR"))
    own = asked.root is None
    try:
        if own:
            spec = importlib.util.spec_from_file_location("docker", HERE + "/compare-docker.py")
            docker = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(docker)
            docker.base_image(asked.corten, work)
            asked.root = work + "/root"
            os.makedirs(asked.root)
        chaos = Chaos(asked, work)
        if own:
            chaos.run("load", "-q", "-i", work + "/alpine.tar")
        print(f"seed {asked.seed}", flush=True)
        ids = chaos.all(asked)
        if own:
            code, said = chaos.run("system", "reset", "--force")
            if code:
                chaos.complain(f"reset: {said}")
            chaos.left(ids)
        counts = ", ".join(f"{n} {what}" for what, n in sorted(chaos.counts.items()))
        print(f"{counts}\n{len(chaos.wrong)} wrong")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(bool(chaos.wrong))


if __name__ == "__main__":
    main()
