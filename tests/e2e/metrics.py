#!/usr/bin/env python3
"""Scrapes a live cluster after some traffic and holds docs/metrics.md to it: the same names on both sides.
Also runs `promtool check metrics` over each scrape where promtool is installed."""

import re
import shutil
import subprocess
import sys

from client import ROOT, scrape
from cluster import Cluster, generate


def emitted(text):
    """Family names: promised by # TYPE lines."""
    return {m[1]: m[2] for m in re.finditer(r"^# TYPE (paceline_\w+) (\w+)", text, re.M)}


def documented():
    rows = re.findall(r"^\| `(paceline_\w+)` \| (\w+) \|", (ROOT / "docs/metrics.md").read_text(), re.M)
    return dict(rows)


def main():
    found, failures = {}, []
    with Cluster(1, 1) as cluster:
        for seed in range(4):
            generate(cluster.router, "--prompt=Once upon a time", "--max-tokens=40", f"--seed={seed}", "--temperature=1")
        for member in cluster.members:
            text = scrape(member.metrics)
            found.update(emitted(text))
            if shutil.which("promtool"):
                ours = "\n".join(l for l in text.splitlines() if "paceline_" in l) + "\n"
                check = subprocess.run(["promtool", "check", "metrics"], input=ours, capture_output=True, text=True)
                if check.returncode != 0:
                    failures.append(f"promtool on {member.role}: {check.stdout}{check.stderr}")
    listed = documented()
    failures += [f"documented and not emitted: {n}" for n in sorted(listed.keys() - found.keys())]
    failures += [f"emitted and not documented: {n}" for n in sorted(found.keys() - listed.keys())]
    failures += [f"{n} is a {found[n]}, documented as {listed[n]}" for n in sorted(found.keys() & listed.keys())
                 if found[n] != listed[n]]
    for failure in failures:
        print(failure)
    print(f"metrics: {len(found)} families, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
