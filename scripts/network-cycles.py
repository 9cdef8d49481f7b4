#!/usr/bin/env python3
"""Clients that create networks, run containers on them, connect them to others and away again, and
remove all of it, many times at once and half of them through `corten serve`, while command lines,
supervisors and the server are killed with -9 at random. No address may be had by two at once;
afterwards nothing may be wrong or left: links, addresses, rules, rows. Needs root.

  scripts/network-cycles.py --corten BINARY [--cycles N] [--clients N] [--seed N]

A cycle is create, run, connect, disconnect, remove. Prints what is wrong, and fails then."""
import argparse, importlib.util, json, os, random, shutil, sys, tempfile, threading, time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
UNSERVED = ["Cannot connect", "error during connect", "connection reset", "before message completed"]


def load(name):
    path = os.path.join(HERE, name)
    spec = importlib.util.spec_from_file_location(name.split(".")[0].replace("-", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


chaos = load("chaos.py")


class Cycles(chaos.Chaos):
    def __init__(self, asked, work):
        super().__init__(asked, work)
        self.left_to_do = asked.cycles

    def take(self):
        with self.lock:
            self.left_to_do -= 1
            return self.left_to_do >= 0

    def step(self, rng, *args):
        killed = rng.uniform(0.001, 0.12) if rng.random() < 0.1 else None
        served = rng.random() < 0.5
        code, said = self.run(*args, kill_after=killed, served=served)
        # The server has just been killed: it is another matter what becomes of the request.
        while served and code and any(word in said[1] for word in UNSERVED):
            served = rng.random() < 0.5
            code, said = self.run(*args, served=served)
        self.count(" ".join(args[:2] if args[0] == "network" else args[:1])
                   + ("" if code == 0 else " killed" if code is None else " refused"))
        return code, said

    def client(self, seed):
        rng = random.Random(seed)
        n = 0
        while self.take():
            n += 1
            # Names of its own, and networks that all share.
            mine, box = f"net-{seed}-{n}", f"box-{seed}-{n}"
            shared = f"shared{rng.randrange(3)}"
            v6 = ["--ipv6"] if rng.random() < 0.3 else []
            inside = ["--internal"] if rng.random() < 0.2 else []
            publish = ["-p", "80"] if rng.random() < 0.3 else []
            self.step(rng, "network", "create", *v6, *inside, mine)
            self.step(rng, "run", "-d", "--name", box, "--network", mine, *publish, "alpine",
                      "sleep", "1000")
            self.step(rng, "network", "connect", "--alias", "a", shared, box)
            if rng.random() < 0.5:
                self.step(rng, "network", "disconnect", rng.choice([mine, shared]), box)
            self.step(rng, "rm", "-f", box)
            self.step(rng, "network", "rm", mine)
            self.count("cycles")

    def watch(self):
        """Looks for an address that two containers have, by what they themselves say."""
        while not self.over.wait(0.3):
            _, (told, _) = self.run("ps", "-q", "--no-trunc")
            ids = told.split()
            if not ids:
                continue
            _, (told, _) = self.run("inspect", *ids)
            had = {}
            try:
                found = json.loads(told or "[]")
            except ValueError:
                continue
            for container in found:
                for name, place in container["NetworkSettings"]["Networks"].items():
                    for key in ("IPAddress", "GlobalIPv6Address"):
                        if place[key]:
                            had.setdefault((place["NetworkID"], place[key]), set()).add(
                                container["Id"])
            for (network, address), holders in had.items():
                if len(holders) > 1:
                    # Two looks, as they are read one after the other.
                    still = [id for id in holders if address in self.run("inspect", id)[1][0]]
                    if len(still) > 1:
                        self.complain(f"{address} of {network} is had by {still}")

    def all(self, asked):
        self.server = self.serve()
        for n in range(3):
            self.run("network", "create", f"shared{n}")
        work = [threading.Thread(target=self.client, args=(asked.seed * 1000 + n,))
                for n in range(asked.clients)]
        others = [threading.Thread(target=self.killer, args=(asked.seed * 1000 + 999,)),
                  threading.Thread(target=self.watch)]
        for thread in work + others:
            thread.start()
        for thread in work:
            thread.join()
        self.over.set()
        for thread in others:
            thread.join()
        self.server.kill()
        self.server.wait()
        self.states()
        self.clean()
        _, (ids, _) = self.run("ps", "-aq")
        for id in ids.split():
            self.run("rm", "-f", "-v", id)
        self.prune_networks()
        self.clean()
        # The three that every engine has.
        self.nothing_left(3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--corten", required=True)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    work = tempfile.mkdtemp(prefix="chaos-", dir=os.environ.get("TMPDIR"))
    try:
        load("compare-docker.py").base_image(asked.corten, work)
        asked.root = work + "/root"
        os.makedirs(asked.root)
        cycles = Cycles(asked, work)
        cycles.run("load", "-q", "-i", work + "/alpine.tar")
        print(f"seed {asked.seed}", flush=True)
        began = time.time()
        cycles.all(asked)
        code, said = cycles.run("system", "reset", "--force")
        if code:
            cycles.complain(f"reset: {said}")
        cycles.left([])
        counts = ", ".join(f"{n} {what}" for what, n in sorted(cycles.counts.items()))
        print(f"{counts}\n{time.time() - began:.0f} s, {len(cycles.wrong)} wrong")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(bool(cycles.wrong))


if __name__ == "__main__":
    main()
