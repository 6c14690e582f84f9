#!/usr/bin/env python3
"""Writes the novels' held-out text, as the training script splits it, for pair_bench:
  python3 tools/train/held_out.py --data FOLDER --out FILE"""

import argparse
import pathlib

import corpus


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    _, held = corpus.split(*corpus.read_documents(args.data), args.seed, story_repeats=4)
    pathlib.Path(args.out).write_text("".join(text + corpus.END for text in held["novels"]), encoding="utf-8")


main()
