#!/usr/bin/env python3
"""README's gRPC call from Python, as it stands there, against a cluster; only the address and the folder of the
stubs are others."""

import pathlib
import re
import subprocess
import tempfile
import unittest

from cluster import ROOT, Cluster

ADDRESS, STUBS = "127.0.0.1:50051", "/tmp/stubs"


def block(language, word):
    """The block of code in README.md that has the word."""
    text = pathlib.Path(ROOT / "README.md").read_text(encoding="utf-8")
    found = [b for b in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if word in b]
    assert len(found) == 1, f"{len(found)} blocks with {word}"
    return found[0]


class ReadmeTest(unittest.TestCase):
    def test_python_example_streams_text(self):
        with tempfile.TemporaryDirectory(prefix="paceline-readme-") as folder, Cluster(1, 0) as cluster:
            make, example = block("sh", "protoc"), block("python", "StreamGenerateText")
            self.assertIn(STUBS, make)
            self.assertIn(ADDRESS, example)
            subprocess.run(["bash", "-euc", make.replace(STUBS, f"{folder}/stubs")], cwd=ROOT, check=True)
            done = subprocess.run(
                ["/usr/bin/python3", "-c", example.replace(STUBS, f"{folder}/stubs").replace(ADDRESS, cluster.router)],
                stdout=subprocess.PIPE, text=True, timeout=60, check=True)
            self.assertGreater(len(done.stdout.split()), 10, done.stdout)


if __name__ == "__main__":
    unittest.main()
