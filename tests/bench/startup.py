#!/usr/bin/env python3
"""From the start of each process to ready, and the first token of a fresh target beside later ones, with the
bundled pair on this machine. Prints medians and the greatest of --runs starts.
  tests/bench/startup.py --runs 10    (what docs/benchmarks/startup.md shows)"""

import argparse
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
from client import Router, Stream, spec  # noqa: E402
from cluster import Process, eventually  # noqa: E402


def started(figures, binary, *flags, role="router"):
    begun = time.monotonic()
    process = Process(binary, "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--log-level=error", *flags, role=role)
    figures.setdefault(f"{role}: start to ready", []).append(time.monotonic() - begun)
    return process


def first_token(router, seed):
    """Seconds to the first token of a prompt that no cache knows."""
    prompt = f"Tale {seed}. Once upon a time there was a house on the hill. " + "They went down to the river again. " * 20
    stream = Stream(router, spec(prompt, seed=seed, max_tokens=4, temperature=1.0))
    stream.finish()
    return stream.arrivals[0][0] - stream.begun


def run(figures):
    models = ROOT / "models"
    with started(figures, "paceline-worker", f"--model={models / 'draft'}", "--role=draft", "--threads=1", role="draft"), \
            started(figures, "paceline-worker", f"--model={models / 'target'}", "--threads=2", role="target") as target, \
            started(figures, "paceline-router", f"--workers={target.address}",
                    f"--model={models / 'target'}") as router, Router(router.address) as client:
        assert eventually(client.health), "the router does not serve"
        figures.setdefault("first token of a fresh target", []).append(first_token(client, 0))
        later = [first_token(client, seed) for seed in range(1, 8)]
        figures.setdefault("first token, later prompts", []).append(statistics.median(later))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    figures = {}
    for _ in range(parser.parse_args().runs):
        run(figures)
    print(f"{'ms':32} {'median':>8} {'greatest':>8}")
    for name, values in figures.items():
        print(f"{name:32} {statistics.median(values) * 1e3:8.0f} {max(values) * 1e3:8.0f}")


if __name__ == "__main__":
    main()
