#!/usr/bin/env python3
"""`paceline` as its users meet it: help, wrong usage, failures in words, exit statuses, and one cluster's life."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import unittest

from cluster import ROOT, Cluster, bin_folder, eventually, generate

USAGE, FAILURE = 2, 1
COMMON_WORDS = set("a and as at be but for from had he her him his i in is it not of on she so that the they to was "
                   "were with you".split())


def run(*arguments, limit=30):
    return subprocess.run([str(bin_folder() / "paceline"), *arguments], capture_output=True, text=True, timeout=limit)


def workers_running():
    """Pids of all worker and router processes of this machine that run from our folder."""
    found = set()
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            binary = os.readlink(process / "exe")
        except OSError:
            continue
        if binary.startswith(str(bin_folder().resolve())) and not binary.endswith("/paceline"):
            found.add(int(process.name))
    return found


class UsageTest(unittest.TestCase):
    def refused(self, *arguments, words):
        done = run(*arguments)
        self.assertEqual(done.returncode, USAGE, done.stderr)
        self.assertEqual(done.stdout, "")
        for word in words:
            self.assertIn(word, done.stderr)

    def test_help(self):
        for arguments in (["--help"], ["help"]):
            done = run(*arguments)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            for command in ("up", "generate", "bench", "status", "drain"):
                self.assertIn(f"\n  {command} ", done.stdout)
        flags = {"up": "model draft targets drafts device port",
                 "generate": "router prompt max-tokens temperature top-p top-k seed n speculation json",
                 "status": "router json", "drain": "router"}
        for command, names in flags.items():
            done = run(command, "--help")
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            for name in names.split():
                self.assertIn(f"--{name}\n", done.stdout)

    def test_wrong_usage(self):
        self.refused(words=["usage: paceline"])
        self.refused("fly", words=["unknown command fly", "usage: paceline"])
        self.refused("generate", words=["--prompt is missing"])
        self.refused("generate", "--prompt=x", "--colour=red", words=["--colour"])
        self.refused("generate", "--prompt=x", "--top-k=many", words=["--top-k", "many"])
        self.refused("generate", "--prompt=x", "--seed=-1", words=["--seed", "-1"])
        self.refused("generate", "--prompt=x", "--max-tokens=99999999999", words=["--max-tokens"])
        self.refused("generate", "--prompt=x", "--speculation=maybe", words=["auto|always|off"])
        self.refused("generate", "--prompt=x", "more", words=["unexpected argument more"])
        self.refused("generate", "--prompt", words=["--prompt"])
        self.refused("status", "all", words=["unexpected argument"])
        self.refused("drain", words=["worker"])
        self.refused("drain", "a:1", "b:2", words=["one worker"])
        self.refused("up", "now", words=["unexpected argument now"])
        self.refused("up", "--targets=0", words=["--targets", "at least 1"])
        self.refused("up", "--drafts=-1", words=["--drafts"])
        self.refused("up", "--port=70000", words=["--port", "70000", "65535"])
        self.refused("up", "--device=abacus", words=["auto|cpu|cuda"])


class DummyWeightsTest(unittest.TestCase):
    """A worker with random weights needs a config.json and nothing else."""

    def worker(self, model, load_format):
        return [str(bin_folder() / "paceline-worker"), "--device=cpu", "--threads=1", f"--model={model}",
                f"--load-format={load_format}", "--log-level=off"]

    def test_config_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            config = json.loads((ROOT / "models/target/config.json").read_text())
            (pathlib.Path(folder) / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
            with subprocess.Popen(self.worker(folder, "dummy"), stdout=subprocess.PIPE, text=True) as worker:
                self.assertIn("worker listening on", worker.stdout.readline())
                worker.terminate()
                worker.wait(30)
            done = subprocess.run(self.worker(folder, "safetensors"), capture_output=True, text=True, timeout=30)
            self.assertEqual(done.returncode, FAILURE)
            self.assertIn("model.safetensors", done.stderr)

    def test_unknown_format(self):
        done = subprocess.run(self.worker("x", "gguf"), capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, USAGE)
        self.assertIn("--load-format", done.stderr)
        self.assertIn("safetensors|dummy", done.stderr)


class UnreachableRouterTest(unittest.TestCase):
    def fails(self, address):
        for arguments in (["generate", "--prompt=x"], ["generate", "--prompt=x", "--json"], ["status"],
                          ["status", "--json"], ["drain", "127.0.0.1:2"]):
            done = run(*arguments, f"--router={address}")
            self.assertEqual(done.returncode, FAILURE, done.stderr)
            self.assertEqual(done.stdout, "")
            self.assertIn("error: ", done.stderr)
            self.assertIn(address, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)

    def test_nobody_listens(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self.fails(f"127.0.0.1:{unused.getsockname()[1]}")

    def test_no_such_host(self):
        self.fails("no-such-host.invalid:50051")

    def test_one_that_says_nothing(self):
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()
            address = f"127.0.0.1:{mute.getsockname()[1]}"
            started = time.monotonic()
            done = run("generate", "--prompt=x", f"--router={address}", limit=15)
            self.assertEqual(done.returncode, FAILURE)
            self.assertIn(address, done.stderr)
            print(f"gave up a silent router after {time.monotonic() - started:.1f} s")


class UpTest(unittest.TestCase):
    def fails(self, *arguments, words):
        done = run("up", *arguments)
        self.assertEqual(done.returncode, FAILURE, done.stdout)
        self.assertNotIn("listening", done.stdout)
        for word in words:
            self.assertIn(word, done.stderr)
        self.assertEqual(workers_running() - self.before, set())

    def setUp(self):
        self.before = workers_running()

    def test_bad_models(self):
        self.fails("--model=/no/such/folder", words=["/no/such/folder"])
        self.fails("--draft=/no/such/folder", words=["/no/such/folder"])
        with tempfile.TemporaryDirectory() as folder:
            self.fails(f"--model={folder}", words=["config.json"])
            pathlib.Path(folder, "config.json").write_text("{")
            self.fails(f"--model={folder}", words=["config.json"])

    def test_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.fails(f"--port={port}", words=[str(port)])

    def test_what_is_printed(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with Cluster(2, 1, f"--port={port}") as cluster:
            self.assertEqual(cluster.router, f"127.0.0.1:{port}")
            self.assertEqual([m.role for m in cluster.members], ["draft", "target", "target", "router"])
            for member in cluster.members:
                self.assertTrue(member.alive())
            print(f"ready after {cluster.ready_seconds:.2f} s")

    def test_interrupted_while_it_starts(self):
        for delay in (0.0, 0.02, 0.05, 0.1, 0.2):
            process = subprocess.Popen([str(bin_folder() / "paceline"), "up"], stdout=subprocess.DEVNULL)
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
            self.assertTrue(eventually(lambda: workers_running() == self.before), f"left after {delay} s")

    def test_killed_outright_leaves_no_worker(self):
        with tempfile.TemporaryFile() as out:
            process = subprocess.Popen([str(bin_folder() / "paceline"), "up"], stdout=out)
            self.assertTrue(eventually(lambda: len(workers_running() - self.before) == 3))
            process.kill()
            process.wait()
        self.assertTrue(eventually(lambda: workers_running() == self.before))

    def test_dead_worker_is_told_and_dead_router_is_the_end(self):
        with tempfile.NamedTemporaryFile() as words, Cluster(1, 1, stderr=words) as cluster:
            told = lambda member: f"pid {member.pid}" in pathlib.Path(words.name).read_text()
            draft, _, router = cluster.members
            draft.kill()
            self.assertTrue(eventually(lambda: told(draft)))
            self.assertIsNone(cluster.process.poll())
            router.kill()
            self.assertEqual(cluster.process.wait(timeout=30), FAILURE)
            self.assertTrue(told(router))
        self.assertEqual(workers_running(), self.before)


class ClusterTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(targets=1, drafts=1, bundled=True).__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__()

    def test_generate_json(self):
        samples, done = generate(self.cluster.router, "--prompt=Once upon a time", "--max-tokens=20", "--seed=7",
                                 "--temperature=1", "--top-p=0.9", "--top-k=50", "--n=3", "--speculation=always")
        self.assertEqual(done.stderr, "")
        self.assertEqual(len(samples), 3)
        self.assertEqual(len(done.stdout.splitlines()), 3)
        for sample in samples:
            self.assertLessEqual({"text", "token_ids", "finish_reason", "usage", "timings_ms"}, sample.keys())
            self.assertEqual(set(sample["usage"]), {"prompt_tokens", "cached_tokens", "output_tokens", "drafted_tokens",
                                                    "accepted_tokens"})
            self.assertEqual(set(sample["timings_ms"]), {"queue", "first_token", "total"})
            self.assertIn(sample["finish_reason"], ("length", "stop"))
            self.assertGreater(sample["timings_ms"]["total"], 0)
        self.assertEqual(sum(len(s["token_ids"]) for s in samples), samples[0]["usage"]["output_tokens"])

    def test_generate_text(self):
        flags = ["--prompt=Once upon a time", "--max-tokens=20", "--seed=7"]
        (sample,), _ = generate(self.cluster.router, *flags)
        done = run("generate", f"--router={self.cluster.router}", *flags)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(done.stdout, sample["text"] + "\n")
        done = run("generate", f"--router={self.cluster.router}", "--stats", *flags)
        self.assertIn("tokens/s", done.stderr)
        self.assertIn("drafts accepted", done.stderr)

    def test_the_routers_refusals_in_words(self):
        done = run("generate", f"--router={self.cluster.router}", "--prompt=x", "--top-p=0")
        self.assertEqual((done.returncode, done.stdout), (FAILURE, ""))
        self.assertRegex(done.stderr, r"^error: INVALID_ARGUMENT: .*top_p.* \(reason INVALID_FIELD\)\n$")
        done = run("generate", f"--router={self.cluster.router}", "--prompt=x", "--model=none")
        self.assertIn("MODEL_NOT_FOUND", done.stderr)
        done = run("drain", f"--router={self.cluster.router}", "127.0.0.1:1")
        self.assertEqual(done.returncode, FAILURE)
        self.assertIn("127.0.0.1:1", done.stderr)

    def test_status(self):
        done = run("status", f"--router={self.cluster.router}")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for member in self.cluster.members:
            if member.role != "router":
                self.assertRegex(done.stdout, rf"(?m)^{member.address} +{member.role} +ready ")
        status = json.loads(run("status", f"--router={self.cluster.router}", "--json").stdout)
        self.assertEqual([w["role"] for w in status["workers"]], ["target", "draft"])
        self.assertEqual({w["state"] for w in status["workers"]}, {"WORKER_STATE_READY"})
        self.assertIn("kv", status["workers"][0])


class BundledPairTest(unittest.TestCase):
    def test_writes_english_and_its_drafts_are_accepted(self):
        # Targets that wait for drafts: how many are right is the pair's doing alone.
        with Cluster(1, 1, "--draft-strategy=sync", bundled=True) as cluster:
            for temperature, least in (("0", 0.3), ("1", 0.2)):
                flags = ["--prompt=Once upon a time", "--max-tokens=150", "--seed=7", f"--temperature={temperature}"]
                (drafted,), _ = generate(cluster.router, *flags, "--speculation=always")
                (plain,), _ = generate(cluster.router, *flags, "--speculation=off")
                self.assertEqual(drafted["token_ids"], plain["token_ids"])
                usage = drafted["usage"]
                print(f"T={temperature}: {usage['accepted_tokens']} of {usage['drafted_tokens']} drafts accepted")
                self.assertGreater(usage["drafted_tokens"], 0)
                self.assertGreater(usage["accepted_tokens"], least * usage["drafted_tokens"])
                words = drafted["text"].lower().split()
                self.assertGreater(sum(w.strip('.,!?"') in COMMON_WORDS for w in words), len(words) / 4)


if __name__ == "__main__":
    unittest.main()
