#!/usr/bin/env python3
"""One rule for tokens, with real processes: the ids of one request must not depend on drafts, on
neighbours, or on the death of the target that serves it.

Every trial starts `--seed 7 --temperature 1 --max-tokens 200` against a cluster with 0, 1 or 2 draft
workers, alone or beside 31 other requests, and in half of them kills the serving target half-way. Prints
one line per trial kind with the gap that the stream saw; exit status 1 unless all trials are equal.
  tests/e2e/equality_trials.py --trials 200        (what docs/benchmarks/failover.md shows)
  tests/e2e/equality_trials.py --trials 12         (CI)"""

import argparse
import itertools
import statistics
import sys
import threading

from cluster import Cluster
from client import Stream, spec

PROMPT = "Once upon a time there was a house on the hill, and in the house"
TOKENS = 200


def others(router, count, stop):
    """Neighbours of other seeds and lengths, restarted until `stop` is set."""

    def loop(number):
        turn = 0
        while not stop.is_set():
            turn += 1
            try:
                Stream(router, spec(f"Neighbour {number} says", seed=1000 * number + turn, max_tokens=40 + number,
                                    temperature=1.0)).finish()
            except Exception:  # a neighbour's own fate is not this test's subject
                stop.wait(0.2)

    threads = [threading.Thread(target=loop, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    return threads


def trial(drafts, beside, kill):
    """Returns (ids, gap in seconds or None, stream)."""
    with Cluster(2, drafts) as cluster:
        stop, threads = threading.Event(), []
        if beside:
            threads = others(cluster.router, beside, stop)
            stop.wait(0.5)
        stream = Stream(cluster.router, spec(PROMPT, seed=7, max_tokens=TOKENS, temperature=1.0, ignore_eos=True))
        gap = None
        if kill:
            stream.read_until(TOKENS // 2)
            killed_at = stream.now()
            stream.target(cluster).kill()
        stream.finish()
        if kill:
            gap = stream.longest_gap_after(killed_at)
        stop.set()
        for thread in threads:
            thread.join(timeout=30)
        return stream.token_ids, gap, stream


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    args = parser.parse_args()
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
