#!/usr/bin/env python3
"""Processes that die, freeze or leave in mid-stream: the stream goes on with the same token ids, or fails with a
typed error. Prints the gaps that the streams saw."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import unittest

import grpc
from client import Router, Stream, cluster_pb2, failure_of, metric, spec
from cluster import Cluster, Process, bin_folder, eventually, standin

PROMPT = "Once upon a time there was a house on the hill, and in the house"


def request(seed=7, max_tokens=1500, **more):
    return spec(PROMPT, seed=seed, max_tokens=max_tokens, temperature=1.0, ignore_eos=True, **more)


def worker(role, address="127.0.0.1:0"):
    return Process("paceline-worker", f"--role={role}", f"--model={standin(role)}", f"--listen={address}",
                   "--metrics-listen=127.0.0.1:0", "--threads=1", "--log-level=warn", role=role)


def router_of(target, *flags):
    return Process("paceline-router", f"--workers={target.address}", f"--model={standin('target')}",
                   "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--log-level=error", *flags)


class FaultTest(unittest.TestCase):
    references = {}

    def reference(self, router, **more):
        """The samples of an undisturbed run."""
        key = repr(sorted(more.items()))
        if key not in self.references:
            self.references[key] = Stream(router, request(**more)).finish()
        return self.references[key]

    def assert_equal(self, stream, whole):
        self.assertEqual(sorted(stream.samples), sorted(whole.samples))
        self.assertTrue(stream.first_indices_ok)
        for number, sample in whole.samples.items():
            self.assertEqual(stream.samples[number].token_ids, sample.token_ids)
            self.assertEqual(stream.samples[number].text, sample.text)
            self.assertEqual(stream.samples[number].finish, sample.finish)
            self.assertEqual(len(stream.samples[number].logprobs), len(sample.logprobs))

    def print_gap(self, what, stream, moment):
        print(f"{what}: gap {stream.longest_gap_after(moment) * 1000:.0f} ms, failovers {stream.failovers}", flush=True)


class DraftWorkerTest(FaultTest):
    def test_killed_in_mid_stream(self):
        with Cluster(targets=1, drafts=1) as cluster, Router(cluster.router) as router:
            whole = self.reference(router)
            stream = Stream(router, request(speculation="always"))
            stream.read_until(100)
            cluster.role("draft")[0].kill()
            moment = stream.now()
            self.assert_equal(stream.finish(), whole)
            self.print_gap("draft worker killed", stream, moment)
            self.assertEqual(stream.failovers, 0)
            self.assert_equal(Stream(router, request(speculation="always")).finish(), whole)
            self.assertTrue(eventually(lambda: [w.state for w in router.status().workers if w.role == "draft"] ==
                                       [cluster_pb2.WORKER_STATE_UNHEALTHY]))

    def test_frozen_for_a_while(self):
        with Cluster(targets=1, drafts=1) as cluster, Router(cluster.router) as router:
            whole = self.reference(router)
            draft = cluster.role("draft")[0]
            stream = Stream(router, request(speculation="always"))
            stream.read_until(100)
            draft.signal(signal.SIGSTOP)
            try:
                moment = stream.now()
                self.assert_equal(stream.finish(), whole)
                self.print_gap("draft worker frozen", stream, moment)
                self.assert_equal(Stream(router, request(speculation="always")).finish(), whole)
            finally:
                draft.signal(signal.SIGCONT)

            def drafts_again():
                again = Stream(router, request(speculation="always")).finish()
                self.assert_equal(again, whole)
                return again.summary.usage.accepted_token_count > 0

            self.assertTrue(eventually(drafts_again, 20))

    def test_frozen_is_left_for_another(self):
        def proposals(draft):
            return metric(draft.metrics, "paceline_draft_proposals_total")

        with Cluster(targets=1, drafts=2) as cluster, Router(cluster.router) as router:
            whole = self.reference(router)
            stream = Stream(router, request(speculation="always"))
            stream.read_until(100)
            serving, other = sorted(cluster.role("draft"), key=proposals, reverse=True)
            self.assertGreater(proposals(serving), 0)
            before = proposals(other)
            serving.signal(signal.SIGSTOP)
            try:
                moment = stream.now()
                self.assert_equal(stream.finish(), whole)
                self.print_gap("one of two draft workers frozen", stream, moment)

                def other_drafts():
                    again = Stream(router, request(speculation="always")).finish()
                    self.assert_equal(again, whole)
                    return again.summary.usage.accepted_token_count > 0 and proposals(other) > before

                self.assertTrue(eventually(other_drafts, 20))
            finally:
                serving.signal(signal.SIGCONT)
            before = proposals(serving)

            def drafts_again():
                self.assert_equal(Stream(router, request(speculation="always")).finish(), whole)
                return proposals(serving) > before

            self.assertTrue(eventually(drafts_again, 20))

    def test_restarted_is_used_again(self):
        with Cluster(targets=1, drafts=1) as cluster, Router(cluster.router) as router:
            whole = self.reference(router)
            draft = cluster.role("draft")[0]
            draft.kill()
            self.assert_equal(Stream(router, request(speculation="always")).finish(), whole)
            with worker("draft", draft.address) as successor:

                def drafts_again():
                    self.assert_equal(Stream(router, request(speculation="always")).finish(), whole)
                    return metric(successor.metrics, "paceline_draft_proposals_total") > 0

                self.assertTrue(eventually(drafts_again, 20))


class TargetTest(FaultTest):
    def carried_over(self, what, harm, **more):
        """A stream whose target suffers `harm` in the middle ends as if nothing had been."""
        for _ in range(5):  # again where the harm came behind the last token
            with Cluster(targets=2, drafts=1) as cluster, Router(cluster.router) as router:
                whole = self.reference(router, **more)
                stream = Stream(router, request(**more))
                stream.read_until(100)
                victim = stream.target(cluster)
                moment = stream.now()
                with harm(victim):
                    self.assert_equal(stream.finish(), whole)
                    self.print_gap(what, stream, moment)
                    after = Stream(router, request(**more)).finish()
                    self.assert_equal(after, whole)
                    self.assertNotEqual(after.start.worker, victim.address)
                if stream.failovers == 0:
                    continue
                self.assertEqual(stream.failovers, 1)
                self.assertTrue(stream.summary.failover_exact)
                counted = metric(cluster.role("router")[0].metrics, "paceline_router_failovers_total")
                self.assertGreaterEqual(counted, 1)
                return
        self.fail("no failover in five tries")

    @staticmethod
    @contextlib.contextmanager
    def killed(victim):
        victim.kill()
        yield

    @staticmethod
    @contextlib.contextmanager
    def frozen(victim):
        victim.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            victim.signal(signal.SIGCONT)

    def test_killed_in_mid_stream(self):
        self.carried_over("target killed", self.killed)

    def test_killed_with_samples_logprobs_and_penalties(self):
        self.carried_over("target killed, 4 samples", self.killed, max_tokens=1000, sample_count=4, logprobs=True,
                          top_logprobs=2, frequency_penalty=0.5, repetition_penalty=1.1)

    def test_killed_under_plain_decoding(self):
        self.carried_over("target killed, plain", self.killed, speculation="off")

    def test_frozen_in_mid_stream(self):
        self.carried_over("target frozen", self.frozen)

    def test_drained_in_mid_stream(self):
        with Cluster(targets=2, drafts=1) as cluster, Router(cluster.router) as router:
            whole = self.reference(router)
            stream = Stream(router, request())
            stream.read_until(50)
            victim = stream.target(cluster)
            done = subprocess.run([str(bin_folder() / "paceline"), "drain", "--router", cluster.router, victim.address],
                                  capture_output=True, text=True, timeout=20)
            self.assertEqual(done.returncode, 0, done.stderr)
            after = Stream(router, request())
            self.assert_equal(stream.finish(), whole)
            self.assertEqual(stream.failovers, 0)
            self.assert_equal(after.finish(), whole)
            self.assertNotEqual(after.start.worker, victim.address)

    def test_terminated_in_mid_stream_finishes_first(self):
        with Cluster(targets=2, drafts=1) as cluster, Router(cluster.router) as router:
            whole = self.reference(router)
            stream = Stream(router, request())
            stream.read_until(50)
            victim = stream.target(cluster)
            victim.signal(signal.SIGTERM)
            self.assert_equal(stream.finish(), whole)
            self.assertTrue(eventually(lambda: not victim.alive()))
            self.assert_equal(Stream(router, request()).finish(), whole)

    def test_none_left_is_a_typed_error_until_one_is_back(self):
        with contextlib.ExitStack() as stack:
            target = stack.enter_context(worker("target"))
            cluster = stack.enter_context(router_of(target, "--failover-timeout=1"))
            router = stack.enter_context(Router(cluster.address))
            whole = self.reference(router)
            stream = Stream(router, request())
            stream.read_until(50)
            target.kill()
            stream.wait()
            self.assertEqual((stream.failure.code, stream.failure.reason),
                             (grpc.StatusCode.UNAVAILABLE, "STREAM_LOST"))
            self.assertEqual(stream.token_ids, whole.token_ids[:stream.token_count()])
            failure = failure_of(router.generate, request())
            self.assertEqual((failure.code, failure.reason), (grpc.StatusCode.UNAVAILABLE, "NO_WORKER"))
            self.assertIn("RetryInfo", failure.details)
            self.assertFalse(router.health())
            stack.enter_context(worker("target", target.address))
            self.assertTrue(eventually(router.health, 20))
            self.assert_equal(stream.resume(router).finish(), whole)
            self.assert_equal(Stream(router, request()).finish(), whole)


class RouterTest(FaultTest):
    def test_terminated_in_mid_stream_finishes_first(self):
        with worker("target") as target, router_of(target) as own, Router(own.address) as router:
            whole = self.reference(router)
            stream = Stream(router, request(max_tokens=1500))
            stream.read_until(50)
            own.signal(signal.SIGTERM)
            self.assertTrue(eventually(lambda: not router.health()))
            failure = failure_of(router.generate, request())
            self.assertEqual((failure.code, failure.reason), (grpc.StatusCode.UNAVAILABLE, "DRAINING"))
            stream.finish()
            self.assertEqual(stream.token_ids[:whole.token_count()], whole.token_ids)
            self.assertEqual(own.process.wait(timeout=20), 0)

    def test_ends_at_once_before_workers_that_nobody_starts(self):
        nobody = ",".join(f"127.0.0.1:{port}" for port in range(1, 41))
        with Process("paceline-router", f"--workers={nobody}", f"--model={standin('target')}", "--listen=127.0.0.1:0",
                     "--metrics-listen=127.0.0.1:0", "--log-level=off") as own:
            time.sleep(1.5)  # in which each of them is tried again and again
            own.signal(signal.SIGTERM)
            self.assertEqual(own.process.wait(timeout=20), 0)

    def test_killed_in_mid_stream_resumes_at_its_replica(self):
        key = tempfile.NamedTemporaryFile("w", suffix=".key")
        key.write(os.urandom(16).hex())
        key.flush()
        with key, worker("target") as target:
            flag = f"--resume-key-file={key.name}"
            with router_of(target, flag) as first, router_of(target, flag) as second, router_of(target) as stranger:
                whole = self.reference(second.address)
                stream = Stream(first.address, request())
                stream.read_until(100)
                first.kill()
                moment = stream.now()
                stream.wait()
                self.assertEqual(stream.failure.code, grpc.StatusCode.UNAVAILABLE)
                rest = stream.resume(second.address).finish()
                self.assert_equal(rest, whole)
                print(f"router killed: first resumed token after {(rest.arrivals[0][0] - moment) * 1000:.0f} ms")
                refused = stream.resume(stranger.address).wait()  # has a key of its own
                self.assertEqual(refused.failure.reason, "RESUME_TOKEN_INVALID")


if __name__ == "__main__":
    unittest.main()
