"""A cluster of real processes for the end-to-end tests: `paceline up`, and each process by role."""

import json
import os
import pathlib
import re
import select
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def bin_folder():
    return pathlib.Path(os.environ.get("PACELINE_BIN", ROOT / "build/release/bin"))


def standin(role):
    """A model of the build's stand-in pair: ten times as fast as the bundled one, with twice its context."""
    return bin_folder().parent / "standin" / role


def eventually(condition, limit=10.0):
    """Whether `condition` comes true within `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Member:
    """A process of a cluster."""

    def __init__(self, role, address, metrics, pid):
        self.role, self.address, self.metrics, self.pid = role, address, metrics, int(pid)

    def alive(self):
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"

    def command(self):
        with open(f"/proc/{self.pid}/cmdline", encoding="utf-8") as line:
            return line.read().rstrip("\0").split("\0")

    def signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)


def read_line(process, pattern, limit=60):
    """The match of the first line of the process's output that begins with the pattern."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        ready, _, _ = select.select([process.stdout], [], [], 0.5)
        if ready:
            line = process.stdout.readline().decode()
            match = re.match(pattern, line)
            if match:
                return match
            if not line:
                raise RuntimeError(f"{process.args[0]} ended with {process.wait()}")
    raise TimeoutError(f"{process.args[0]} did not print {pattern}")


class Process(Member):
    """paceline-router or paceline-worker, started by itself; killed at the end of its block."""

    def __init__(self, binary, *flags, role="router"):
        self.process = subprocess.Popen([str(bin_folder() / binary), *flags], stdout=subprocess.PIPE, bufsize=0)
        try:
            address = read_line(self.process, r"\w+ listening on (\S+)")[1]
            metrics = read_line(self.process, r"metrics listening on (\S+)")[1]
        except BaseException:
            self.process.kill()
            raise
        super().__init__(role, address, metrics, self.process.pid)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Cluster:
    """Starts on entry, drains on exit. `members` hold role, address, metrics address and pid. Runs the stand-in pair;
    bundled=True: what `paceline up` runs when no model is named."""

    def __init__(self, targets=1, drafts=1, *extra, stderr=None, bundled=False):
        models = [] if bundled else [f"--model={standin('target')}", f"--draft={standin('draft')}"]
        self.command = [str(bin_folder() / "paceline"), "up", f"--targets={targets}", f"--drafts={drafts}", *models, *extra]
        self.processes = targets + drafts + 1
        self.stderr = stderr

    def __enter__(self):
        self.started = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=self.stderr, bufsize=0)
        self.router = read_line(self.process, r"router listening on (\S+)")[1]
        self.ready_seconds = time.monotonic() - self.started
        self.members = []
        for _ in range(self.processes):
            match = read_line(self.process, r"(\w+) address=(\S+) metrics=(\S+) pid=(\d+)")
            self.members.append(Member(*match.groups()))
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.stdout.close()
        left = [m.pid for m in self.members if m.alive()]
        assert not left, f"processes left behind: {left}"

    def role(self, name):
        return [m for m in self.members if m.role == name]


def generate(router, *flags, check=True, timeout=60):
    """Runs `paceline generate --json`; returns (list of sample objects, completed process)."""
    done = subprocess.run(
        [str(bin_folder() / "paceline"), "generate", f"--router={router}", "--json", *flags],
        capture_output=True, text=True, timeout=timeout)
    if check and done.returncode != 0:
        raise RuntimeError(f"generate failed ({done.returncode}): {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done


def ids(samples):
    return [s["token_ids"] for s in sorted(samples, key=lambda s: s.get("sample", 0))]
