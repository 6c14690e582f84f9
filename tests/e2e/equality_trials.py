#!/usr/bin/env python3
"""One rule for tokens, with real processes: the ids of one request must not depend on drafts, on
neighbours, or on the death of the target that serves it.

Every trial starts `--seed 7 --temperature 1 --max-tokens 200` against a cluster with 0, 1 or 2 draft
workers, alone or beside 31 other requests, and in half of them kills the serving target half-way. Prints
one line per trial kind with the gap that the stream saw; exit status 1 unless all trials are equal.
  tests/e2e/equality_trials.py --trials 200        (what docs/benchmarks/failover.md shows)
  tests/e2e/equality_trials.py --trials 12         (CI)"""

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import threading
import time

from client import Router, Stream, metric, spec
from cluster import Cluster, eventually

PROMPT = "Once upon a time there was a house on the hill, and in the house"
TOKENS = 200


def be_others(router, count):
    """Neighbours of other seeds and lengths, one stream after the other each, until standard input ends."""

    def loop(number):
        turn = 0
        while True:
            turn += 1
            try:
                Stream(calls, spec(f"Neighbour {number} says", seed=1000 * number + turn, max_tokens=400 + 10 * number,
                                   temperature=1.0)).finish()
            except AssertionError:  # a neighbour's own fate is not this test's subject
                time.sleep(0.2)

    calls = Router(router)
    for number in range(count):
        threading.Thread(target=loop, args=(number,), daemon=True).start()
    sys.stdin.read()
    os._exit(0)


@contextlib.contextmanager
def others(router, count):
    """Neighbours in a process of their own, so that the stream under test is read without delay."""
    if count == 0:
        yield
        return
    process = subprocess.Popen([sys.executable, "-B", __file__, f"--others={count}", f"--router={router}"],
                               stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.stdin.close()
        process.wait(timeout=30)


def running(cluster):
    return sum(metric(m.metrics, "paceline_worker_requests_running") for m in cluster.role("target"))


def trial(drafts, beside, kill):
    """Returns (ids, gap in seconds or None, stream)."""
    with Cluster(2, drafts) as cluster, others(cluster.router, beside):
        assert eventually(lambda: running(cluster) >= beside // 2, 30), "the neighbours do not come"
        stream = Stream(cluster.router, spec(PROMPT, seed=7, max_tokens=TOKENS, temperature=1.0, ignore_eos=True))
        gap = None
        if kill:
            stream.read_until(TOKENS // 2)
            killed_at = stream.now()
            stream.target(cluster).kill()
        stream.finish()
        if kill:
            gap = stream.longest_gap_after(killed_at)
        return stream.token_ids, gap, stream


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--others", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--router", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.others:
        be_others(args.router, args.others)
    kinds = list(itertools.product((0, 1, 2), (0, 31), (False, True)))
    reference, equal, gaps, failed = None, 0, {}, []
    for number in range(args.trials):
        drafts, beside, kill = kinds[number % len(kinds)]
        ids, gap, stream = trial(drafts, beside, kill)
        while kill and ids == reference and not stream.failovers:  # the last token was out already: again
            ids, gap, stream = trial(drafts, beside, kill)
        reference = reference or ids
        good = ids == reference and len(ids) == TOKENS
        equal += good
        if gap is not None:
            gaps.setdefault(beside, []).append(gap)
        note = f" gap {gap * 1000:.0f} ms failovers {stream.failovers}" if gap is not None else ""
        print(f"trial {number}: drafts {drafts}, beside {beside}, kill {kill}: "
              f"{'equal' if good else 'DIFFERENT'}{note}", flush=True)
        if not good:
            failed.append((number, ids))
    for beside, values in sorted(gaps.items()):
        values.sort()
        print(f"gap beside {beside}: median {statistics.median(values) * 1000:.0f} ms, "
              f"p99 {values[min(len(values) - 1, int(len(values) * 0.99))] * 1000:.0f} ms, {len(values)} kills")
    print(f"{equal} of {args.trials} trials equal")
    return 0 if not failed else 1


if __name__ == "__main__":
    sys.exit(main())
