#!/usr/bin/env python3
"""The install tree, as it goes to another machine: it packs small, brings the libraries that a bare machine
lacks, and its binaries run from wherever it lies."""

import os
import pathlib
import subprocess
import tempfile
import unittest

from cluster import bin_folder

MAX_PACKED_BYTES = 16 << 20
# Of the C and C++ runtimes, which every machine has.
RUNTIME = ("linux-vdso", "ld-linux", "libc.", "libm.", "libdl.", "libpthread.", "librt.", "libresolv.", "libstdc++.",
           "libgcc_s.")


class InstallTest(unittest.TestCase):
    def test_tree_is_small_whole_and_relocatable(self):
        with tempfile.TemporaryDirectory(prefix="paceline-install-") as folder:
            there, tree = pathlib.Path(folder) / "there", pathlib.Path(folder) / "moved" / "paceline"
            subprocess.run(["cmake", "--install", str(bin_folder().parent), "--component", "runtime", "--strip",
                            "--prefix", str(there)], check=True, stdout=subprocess.DEVNULL)
            tree.parent.mkdir()
            there.rename(tree)
            packed = pathlib.Path(folder) / "paceline.tar.xz"
            subprocess.run(["tar", "-C", str(tree.parent), "-cJf", str(packed), "paceline"], check=True,
                           env={**os.environ, "XZ_OPT": "-6 -T2"})
            size = packed.stat().st_size
            print(f"install tree: {size / 2**20:.1f} MiB packed", flush=True)
            self.assertLessEqual(size, MAX_PACKED_BYTES)
            binaries = sorted((tree / "bin").iterdir())
            self.assertEqual([b.name for b in binaries], ["paceline", "paceline-router", "paceline-worker"])
            for binary in binaries:
                with self.subTest(binary.name):
                    for line in subprocess.run(["ldd", str(binary)], check=True, stdout=subprocess.PIPE,
                                               text=True).stdout.splitlines():
                        name = line.split()[0].split("/")[-1]
                        if not name.startswith(RUNTIME):
                            self.assertIn(str(tree / "lib"), os.path.normpath(line.split(" => ")[-1].split(" (")[0]), line)
                    run = subprocess.run([str(binary), "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                         text=True, env={"PATH": "/usr/bin:/bin"}, check=False)
                    self.assertEqual(run.returncode, 0, run.stdout)


if __name__ == "__main__":
    unittest.main()
