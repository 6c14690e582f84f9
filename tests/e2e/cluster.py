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


class Member:
    def __init__(self, role, address, metrics, pid):
        self.role, self.address, self.metrics, self.pid = role, address, metrics, int(pid)

    def alive(self):
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)


class Cluster:
    """Starts on entry, drains on exit. `members` hold role, address, metrics address and pid."""

    def __init__(self, targets=1, drafts=1, *extra):
        self.command = [str(bin_folder() / "paceline"), "up", f"--targets={targets}", f"--drafts={drafts}", *extra]
        self.processes = targets + drafts + 1

    def __enter__(self):
        self.started = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        self.router = self._line(r"router listening on (\S+)")[1]
        self.ready_seconds = time.monotonic() - self.started
        self.members = []
        for _ in range(self.processes):
            match = self._line(r"(\w+) address=(\S+) metrics=(\S+) pid=(\d+)")
            self.members.append(Member(*match.groups()))
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        left = [m.pid for m in self.members if m.alive()]
        assert not left, f"processes left behind: {left}"

    def _line(self, pattern, limit=60):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            ready, _, _ = select.select([self.process.stdout], [], [], 0.5)
            if ready:
                line = self.process.stdout.readline()
                match = re.match(pattern, line)
                if match:
                    return match
                if not line:
                    raise RuntimeError(f"paceline up ended with {self.process.wait()}")
        raise TimeoutError(f"paceline up did not print {pattern}")

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
