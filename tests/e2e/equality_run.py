#!/usr/bin/env python3
"""One rule for tokens, over many prompts: the same requests plain and with each way of drafting, at each
temperature, before one cluster of real processes; every token id must be equal. The comparing is
`paceline bench --compare`'s; this starts the cluster, sees to it that drafts were accepted at all, and prints a
row per temperature and mode. Exit status 1 unless every output is equal, whole and drafted for.
  tests/e2e/equality_run.py --requests 2000 --max-tokens 128   (what docs/benchmarks/speculation.md shows)
  tests/e2e/equality_run.py                                    (CI)"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from cluster import Cluster, bin_folder

DRAFTING = ["sync", "chain", "enumerate"]


def compare(router, temperature, args):
    """The comparison's figures at one temperature."""
    prompts = ([f"--prompts={args.prompts}", f"--max-prompt-bytes={args.max_prompt_bytes}"] if args.prompts else
               ["--prompt-tokens=24"])
    with tempfile.TemporaryDirectory(prefix="paceline-equality-") as folder:
        figures = pathlib.Path(folder) / "figures.json"
        done = subprocess.run(
            [str(bin_folder() / "paceline"), "bench", f"--router={router}", *prompts, f"--requests={args.requests}",
             f"--max-tokens={args.max_tokens}", f"--concurrency={args.concurrency}", "--ignore-eos", "--timeout=600",
             "--rounds=1", "--warmup=0", f"--temperature={temperature}", f"--compare=plain,{','.join(DRAFTING)}",
             f"--json={figures}"],
            stdout=subprocess.PIPE, stderr=sys.stderr, text=True, check=False)
        if not figures.exists():
            raise RuntimeError(f"paceline bench ended with {done.returncode}: {done.stdout}")
        return json.loads(figures.read_text(encoding="utf-8"))


def faults(figures, args):
    """What keeps the figures of one temperature from being a proof."""
    found = [f"request {d['request']}: {d['mode']} leaves {d['reference_mode']} at token {d['position']}"
             for d in figures["divergences"]]
    for mode in figures["modes"]:
        whole = args.requests * args.max_tokens
        if mode["failed"] or mode["total_output_tokens"] != whole:
            found.append(f"{mode['mode']}: {mode['failed']} failed, {mode['total_output_tokens']} of {whole} tokens")
        if mode["mode"] in DRAFTING and mode["accepted_tokens"] == 0:
            found.append(f"{mode['mode']}: no draft was accepted, so equality says nothing")
    if figures["outputs_compared"] < len(DRAFTING) * args.requests:
        found.append(f"only {figures['outputs_compared']} outputs were compared")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--temperatures", default="0,0.7,1")
    parser.add_argument("--prompts", help="prompt file, as for paceline bench; default: random token ids")
    parser.add_argument("--max-prompt-bytes", type=int, default=0)
    parser.add_argument("--up", action="append", default=[], metavar="FLAG", help="further flag of paceline up")
    args = parser.parse_args()
    found = []
    print(f"{args.requests} requests of {args.max_tokens} tokens each\n\n"
          "| T | mode | outputs equal to plain | drafts verified | accepted |\n|---|---|---|---|---|", flush=True)
    with Cluster(1, 1, *args.up, bundled=True) as cluster:
        for temperature in args.temperatures.split(","):
            figures = compare(cluster.router, temperature, args)
            for mode in figures["modes"]:
                if mode["mode"] not in DRAFTING:
                    continue
                differ = {d["request"] for d in figures["divergences"] if mode["mode"] == d["mode"]}
                share = mode["accepted_tokens"] / max(1, mode["drafted_tokens"])
                print(f"| {temperature} | {mode['mode']} | {mode['completed'] - len(differ)} of {args.requests} | "
                      f"{mode['drafted_tokens']} | {share:.1%} |", flush=True)
            found += [f"T = {temperature}: {fault}" for fault in faults(figures, args)]
    print("\n".join(found) if found else "\nevery token is equal")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
