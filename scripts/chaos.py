#!/usr/bin/env python3
"""Clients that run, stop, kill, pause, look into and remove the same few containers at once, half
of them through `corten serve`, while command lines, supervisors and the server are killed with
-9 at random. Afterwards nothing may be wrong: `system check` finds nothing, what is told of each
container is true, and nothing of the engine is left once it is reset. Needs root.

  scripts/chaos.py --corten BINARY [--minutes N | --seconds N] [--clients N] [--seed N] [--root DIR]

Without --root it makes an engine and the tests' image; with it there must be the image alpine.
The seed decides what the clients do, not how it meets. Prints what is wrong, and fails then."""
import argparse, hashlib, importlib.util, json, os, random, shutil, signal, subprocess, sys
import tempfile, threading, time

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
            args = rng.choice([
                ["run", "-d", "--name", name, *rm, "alpine", "sleep", "1000"],
                ["run", "-d", "--name", name, *rm, "-p", "80", "alpine", "sleep", "1000"],
                ["run", "-d", "--name", name, "--restart", "always", "alpine", "sleep", "0.2"],
                ["run", "-d", "--name", name, "--restart", "on-failure:2", "alpine", "false"],
                ["run", "--name", name, *rm, "--network", "none", "alpine", "sh", "-c", "exit 3"],
                ["create", "--name", name, "-v", "/anon", "alpine", "sleep", "1000"],
                ["start", name], ["stop", "-t", "0", name], ["stop", "-t", "1", name],
                ["kill", name], ["kill", "-s", "TERM", name], ["restart", "-t", "0", name],
                ["pause", name], ["unpause", name], ["exec", name, "true"],
                ["exec", "-d", name, "sleep", "5"], ["logs", name], ["inspect", name],
                ["ps", "-a"], ["top", name], ["rename", name, rng.choice(self.names)],
                ["rm", "-f", "-v", name], ["rm", "-f", name], ["rm", name],
            ])
            killed = rng.uniform(0.001, 0.15) if rng.random() < 0.2 else None
            code, _ = self.run(*args, kill_after=killed, served=rng.random() < 0.5)
            self.count(args[0] + (" killed" if code is None else ""))

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
            code, (_, said) = self.run("exec", id, "true")
            if code:
                return f"is said to run, and cannot be entered: {said}"
        return None

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

    def all(self, asked):
        self.server = self.serve()
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
        self.clean()
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
