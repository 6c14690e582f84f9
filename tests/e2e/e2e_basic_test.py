#!/usr/bin/env python3
"""The public API of a small cluster of real processes: every call, its errors, and what it leaves behind."""

import subprocess
import time
import unittest

import grpc
from client import Failure, Router, Stream, cluster_pb2, failure_of, metric, pb, session_pb2, spec
from cluster import Cluster, Process, bin_folder, eventually, read_line

PROMPT = "Once upon a time there was a house on the hill"


def setUpModule():
    global cluster, router
    cluster = Cluster(targets=2, drafts=1).__enter__()
    router = Router(cluster.router)


def tearDownModule():
    router.channel.close()
    cluster.__exit__()


def router_before(target, *flags):
    return Process("paceline-router", f"--workers={target.address}", "--listen=127.0.0.1:0",
                   "--metrics-listen=127.0.0.1:0", "--log-level=error",
                   *[f for f in cluster.role("router")[0].command() if f.startswith("--model=")], *flags)


def running_sequences():
    return sum(metric(m.metrics, "paceline_worker_requests_running") for m in cluster.role("target"))


def active_blocks():
    return sum(metric(m.metrics, "paceline_worker_kv_blocks", state="active") for m in cluster.role("target"))


class GenerationTest(unittest.TestCase):
    def test_stream_and_answer_agree(self):
        request = spec(PROMPT, seed=7, max_tokens=60, temperature=1.0)
        stream = Stream(router, request).finish()
        answer = router.generate(request)
        self.assertEqual(len(answer.samples), 1)
        self.assertEqual(stream.token_ids, list(answer.samples[0].token_ids))
        self.assertEqual(stream.text, answer.samples[0].text)
        self.assertTrue(stream.first_indices_ok)
        self.assertEqual(stream.start.seed, 7)
        self.assertEqual(stream.start.model, answer.start.model)
        self.assertTrue(stream.start.numerics_fingerprint)
        self.assertTrue(stream.start.resume_token)
        self.assertTrue(stream.start.request_id)
        self.assertIn(stream.start.worker, [m.address for m in cluster.role("target")])
        self.assertEqual(stream.summary.usage.prompt_token_count, stream.start.prompt_token_count)
        self.assertEqual(stream.summary.usage.output_token_count, len(stream.token_ids))
        self.assertEqual(stream.failovers, 0)
        self.assertGreater(stream.summary.timings.total.ToMicroseconds(), 0)

    def test_token_ids_do_not_depend_on_speculation(self):
        streams = [Stream(router, spec(PROMPT, seed=11, max_tokens=80, temperature=t, speculation=s)).finish()
                   for t in (0.0, 1.0) for s in ("off", "auto", "always", "ngram")]
        for group in (streams[:4], streams[4:]):
            for stream in group[1:]:
                self.assertEqual(group[0].token_ids, stream.token_ids)
                self.assertEqual(group[0].text, stream.text)
        self.assertEqual(streams[0].summary.usage.drafted_token_count, 0)

    def test_drafts_are_used(self):
        usage = router.generate(spec(PROMPT, seed=5, max_tokens=120, ignore_eos=True, speculation="always")).summary.usage
        self.assertGreater(usage.drafted_token_count, 0)
        self.assertLessEqual(usage.accepted_token_count, usage.drafted_token_count)

    def test_seed_is_drawn_and_returned(self):
        first = Stream(router, spec(PROMPT, max_tokens=30, temperature=1.0)).finish()
        again = Stream(router, spec(PROMPT, seed=first.start.seed, max_tokens=30, temperature=1.0)).finish()
        self.assertEqual(first.token_ids, again.token_ids)
        other = Stream(router, spec(PROMPT, max_tokens=30, temperature=1.0)).finish()
        self.assertNotEqual(first.start.seed, other.start.seed)

    def test_token_ids_as_prompt(self):
        tokens = list(router.inference.TokenizeText(pb.TokenizeTextRequest(text=PROMPT)).token_ids)
        by_text = router.generate(spec(PROMPT, seed=3, max_tokens=20))
        by_ids = router.generate(spec(token_ids=tokens, seed=3, max_tokens=20))
        self.assertEqual(by_text.samples[0].token_ids, by_ids.samples[0].token_ids)

    def test_samples_equal_those_alone(self):
        stream = Stream(router, spec(PROMPT, seed=9, max_tokens=40, temperature=1.0, sample_count=4)).finish()
        self.assertEqual(sorted(stream.samples), [0, 1, 2, 3])
        self.assertEqual(len({tuple(s.token_ids) for s in stream.samples.values()}), 4)
        alone = Stream(router, spec(PROMPT, seed=9, max_tokens=40, temperature=1.0)).finish()
        self.assertEqual(stream.token_ids, alone.token_ids)
        self.assertEqual(stream.summary.usage.output_token_count, stream.token_count())

    def test_stop_string_ends_before_it(self):
        whole = router.generate(spec(PROMPT, seed=7, max_tokens=60, ignore_eos=True)).samples[0].text
        stop = whole[len(whole) // 2:][:4]
        stream = Stream(router, spec(PROMPT, seed=7, max_tokens=60, ignore_eos=True, stop_strings=[stop])).finish()
        self.assertEqual(stream.text, whole[:whole.index(stop)])
        self.assertEqual(stream.samples[0].finish, "stop")

    def test_stop_token(self):
        tokens = list(router.generate(spec(PROMPT, seed=7, max_tokens=40, ignore_eos=True)).samples[0].token_ids)
        stop = tokens[20]
        ended = router.generate(spec(PROMPT, seed=7, max_tokens=40, ignore_eos=True, stop_token_ids=[stop])).samples[0]
        self.assertEqual(list(ended.token_ids), tokens[:tokens.index(stop) + 1])
        self.assertEqual(ended.finish_reason, pb.FINISH_REASON_STOP)

    def test_length_ends(self):
        sample = router.generate(spec(PROMPT, seed=7, max_tokens=17, ignore_eos=True)).samples[0]
        self.assertEqual(len(sample.token_ids), 17)
        self.assertEqual(sample.finish_reason, pb.FINISH_REASON_LENGTH)

    def test_logprobs(self):
        stream = Stream(router, spec(PROMPT, seed=7, max_tokens=25, temperature=0.0, ignore_eos=True, logprobs=True,
                                     top_logprobs=3)).finish()
        sample = stream.samples[0]
        self.assertEqual(len(sample.logprobs), 25)
        for token, entry in zip(sample.token_ids, sample.logprobs):
            self.assertLessEqual(entry.logprob, 0)
            self.assertEqual(len(entry.top), 3)
            self.assertEqual(entry.top[0].token_id, token)  # greedy takes the best
            self.assertEqual([t.logprob for t in entry.top], sorted((t.logprob for t in entry.top), reverse=True))

    def test_logit_bias_and_penalties_reach_the_sampler(self):
        token = router.inference.TokenizeText(pb.TokenizeTextRequest(text="x")).token_ids[0]
        biased = router.generate(spec(PROMPT, seed=1, max_tokens=10, logit_bias={token: 100.0})).samples[0]
        self.assertEqual(set(biased.token_ids), {token})
        plain = spec(PROMPT, seed=1, max_tokens=60, temperature=0.0, ignore_eos=True)
        penalised = spec(PROMPT, seed=1, max_tokens=60, temperature=0.0, ignore_eos=True, presence_penalty=2.0,
                         repetition_penalty=1.5)
        self.assertGreater(len(set(router.generate(penalised).samples[0].token_ids)),
                           len(set(router.generate(plain).samples[0].token_ids)))

    def test_prefix_cache_is_used_and_salted(self):
        prompt = "A prompt that this test alone sends. " * 12
        cached = lambda: router.generate(spec(prompt, max_tokens=2)).summary.usage.cached_token_count
        # Where the router does not know yet who holds the prefix, either target may be chosen.
        self.assertTrue(eventually(lambda: cached() > 0))
        self.assertEqual(
            router.generate(spec(prompt, max_tokens=2, cache_salt="other")).summary.usage.cached_token_count, 0)

    def test_many_at_once_equal_those_alone(self):
        requests = [spec(f"Stream {n} says", seed=n, max_tokens=50, temperature=1.0) for n in range(32)]
        beside = [Stream(router, r) for r in requests]
        beside = [s.finish().token_ids for s in beside]
        alone = [Stream(router, r).finish().token_ids for r in requests]
        self.assertEqual(beside, alone)


class EndsTest(unittest.TestCase):
    """Whatever ends a request early leaves no sequence and no block behind."""

    def long_stream(self, timeout=120):
        return Stream(router, spec(PROMPT, seed=7, max_tokens=1500, ignore_eos=True, sample_count=8), timeout)

    def assert_freed(self):
        self.assertTrue(eventually(lambda: running_sequences() == 0 and active_blocks() == 0),
                        f"{running_sequences()} sequences, {active_blocks()} blocks are held")
        self.assertTrue(eventually(lambda: metric(cluster.role("router")[0].metrics,
                                                  "paceline_router_requests_in_flight") == 0))

    def test_cancel_frees(self):
        stream = self.long_stream()
        stream.read_until(20)
        self.assertGreater(running_sequences(), 0)
        stream.cancel()
        stream.wait()
        self.assertEqual(stream.failure.code, grpc.StatusCode.CANCELLED)
        self.assert_freed()

    def test_client_that_vanishes_frees(self):
        with Router(cluster.router) as own:
            stream = Stream(own, spec(PROMPT, seed=7, max_tokens=1500, ignore_eos=True, sample_count=4))
            stream.read_until(20)
        self.assert_freed()

    def test_deadline_is_typed_and_frees(self):
        stream = self.long_stream(timeout=0.15).wait()
        self.assertEqual(stream.failure.code, grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assert_freed()

    def test_all_done_frees(self):
        Stream(router, spec(PROMPT, seed=7, max_tokens=50, sample_count=3)).finish()
        self.assert_freed()


class ErrorTest(unittest.TestCase):
    def refused(self, **changes):
        text = changes.pop("text", PROMPT)
        return failure_of(router.generate, spec(text, **changes))

    def test_bad_fields_are_named(self):
        for field, value in {"temperature": -1.0, "top_p": 0.0, "top_k": -1, "min_p": 1.0, "max_tokens": 0,
                             "repetition_penalty": 0.0, "presence_penalty": 3.0, "frequency_penalty": -3.0,
                             "sample_count": 17, "min_tokens": 999, "top_logprobs": 3}.items():
            with self.subTest(field):
                failure = self.refused(**{field: value})
                self.assertEqual(failure.code, grpc.StatusCode.INVALID_ARGUMENT)
                self.assertEqual(failure.reason, "INVALID_FIELD")
                self.assertEqual(failure.fields(), [f"generation.sampling.{field}"])
                self.assertIn(field, failure.message)

    def test_what_is_not_implemented_is_named(self):
        for field in ("lookahead", "self_draft", "tree", "beam", "calm", "patience"):
            with self.subTest(field):
                request = spec(PROMPT, max_tokens=4)
                getattr(request.decoding, field).SetInParent()
                failure = failure_of(router.generate, request)
                self.assertEqual(failure.code, grpc.StatusCode.INVALID_ARGUMENT)
                self.assertEqual(failure.fields(), [f"generation.decoding.{field}"])
        request = spec(PROMPT)
        request.structured_output.regex = "a+"
        self.assertEqual(failure_of(router.generate, request).fields(), ["generation.structured_output"])

    def test_prompt_is_required(self):
        self.assertEqual(failure_of(router.generate, spec()).code, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual(failure_of(router.generate, spec(token_ids=[10 ** 6])).reason, "INVALID_FIELD")

    def test_context_length(self):
        failure = self.refused(max_tokens=10 ** 6)
        self.assertEqual((failure.code, failure.reason),
                         (grpc.StatusCode.INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED"))
        model = router.inference.ListModels(pb.ListModelsRequest()).models[0]
        self.assertEqual(failure.metadata["limit"], str(model.context_length))

    def test_unknown_model(self):
        failure = self.refused(model="no-such-model")
        self.assertEqual((failure.code, failure.reason), (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"))
        self.assertEqual(failure.details["ResourceInfo"].resource_name, "no-such-model")

    def test_duplicate_request_id(self):
        first = Stream(router, spec(PROMPT, request_id="twice", max_tokens=1500, ignore_eos=True, sample_count=4))
        first.read_until(1)
        failure = self.refused(request_id="twice", max_tokens=4)
        first.cancel()
        self.assertEqual((failure.code, failure.reason),
                         (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_REQUEST_ID"))
        first.wait()
        self.assertTrue(eventually(lambda: not running_sequences()))
        router.generate(spec(PROMPT, request_id="twice", max_tokens=4))

    def test_forged_resume_token(self):
        stream = Stream(router, spec(PROMPT, seed=7, max_tokens=20)).finish()
        token = bytearray(stream.start.resume_token)
        token[len(token) // 2] ^= 1
        request = pb.ResumeGenerateTextRequest(generation=stream.generation, resume_token=bytes(token))
        failure = failure_of(router.inference.ResumeGenerateText, request, timeout=20)
        self.assertEqual((failure.code, failure.reason),
                         (grpc.StatusCode.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID"))


class ResumeTest(unittest.TestCase):
    def test_rest_is_that_of_the_whole(self):
        request = spec(PROMPT, seed=7, max_tokens=400, temperature=1.0, ignore_eos=True, request_id="resumed")
        whole = Stream(router, request).finish()
        broken = Stream(router, request)
        broken.read_until(50)
        broken.cancel()
        broken.wait()
        # Until the router knows of the cancel, the request is one in flight.
        self.assertTrue(eventually(lambda: metric(cluster.role("router")[0].metrics,
                                                  "paceline_router_requests_in_flight") == 0))
        rest = broken.resume(router).finish()
        self.assertEqual(rest.token_ids, whole.token_ids)
        self.assertEqual(rest.text, whole.text)
        self.assertTrue(rest.first_indices_ok)


class TextTest(unittest.TestCase):
    def test_there_and_back(self):
        for text in (PROMPT, "Größe 4 ½, 日本語 🦙!\n\n  x", ""):
            tokens = router.inference.TokenizeText(pb.TokenizeTextRequest(text=text)).token_ids
            back = router.inference.DetokenizeTokens(pb.DetokenizeTokensRequest(token_ids=tokens,
                                                                                skip_special_tokens=True))
            self.assertEqual(back.text, text)

    def test_half_a_character_is_replaced(self):
        tokens = router.inference.TokenizeText(pb.TokenizeTextRequest(text="🦙")).token_ids
        self.assertGreater(len(tokens), 1)
        half = router.inference.DetokenizeTokens(pb.DetokenizeTokensRequest(token_ids=tokens[:1])).text
        self.assertEqual(half, "\ufffd")

    def test_bad_id(self):
        failure = failure_of(router.inference.DetokenizeTokens, pb.DetokenizeTokensRequest(token_ids=[10 ** 6]))
        self.assertEqual((failure.code, failure.reason), (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"))

    def test_stream_never_breaks_a_character(self):
        stream = Stream(router, spec(PROMPT, seed=7, max_tokens=30, ignore_eos=True)).finish()
        whole = router.inference.DetokenizeTokens(pb.DetokenizeTokensRequest(token_ids=stream.token_ids)).text
        self.assertEqual(stream.text, whole)


class ModelTest(unittest.TestCase):
    def test_list_and_get(self):
        models = router.inference.ListModels(pb.ListModelsRequest()).models
        self.assertEqual(len(models), 1)
        model = router.inference.GetModel(pb.GetModelRequest(name=models[0].name)).model
        self.assertEqual(model, models[0])
        self.assertEqual(model.ready_worker_count, 2)
        self.assertEqual(len(model.numerics_fingerprints), 1)
        failure = failure_of(router.inference.GetModel, pb.GetModelRequest(name="none"))
        self.assertEqual((failure.code, failure.reason), (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"))


class SessionTest(unittest.TestCase):
    def test_life_of_a_session(self):
        session = router.sessions.CreateSession(session_pb2.CreateSessionRequest()).session
        self.assertTrue(session.session_id)
        prompt = "A conversation of its own that fills some blocks. " * 8
        first = Stream(router, spec(prompt, session_id=session.session_id, max_tokens=8)).finish()
        again = Stream(router, spec(prompt, session_id=session.session_id, max_tokens=8)).finish()
        self.assertEqual(first.start.worker, again.start.worker)
        self.assertGreater(again.summary.usage.cached_token_count, 0)
        get = lambda: router.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session.session_id))
        found = get().session
        self.assertGreater(found.block_count, 0)
        self.assertEqual(list(found.workers), [first.start.worker])
        listed = router.sessions.ListSessions(session_pb2.ListSessionsRequest()).sessions
        self.assertIn(session.session_id, [s.session_id for s in listed])
        router.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=session.session_id))
        failure = failure_of(get)
        self.assertEqual((failure.code, failure.reason), (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"))


    def test_a_session_ends_when_its_id_says(self):
        create = session_pb2.CreateSessionRequest()
        create.time_to_live.FromSeconds(1)
        session = router.sessions.CreateSession(create).session
        self.assertEqual(session.time_to_live.ToSeconds(), 1)
        Stream(router, spec("A short conversation that fills some blocks. " * 8, session_id=session.session_id,
                            max_tokens=8)).finish()
        get = lambda: router.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session.session_id))
        self.assertLessEqual(get().session.time_to_live.ToMilliseconds(), 1000)

        def gone():
            try:
                get()
            except grpc.RpcError as error:
                return Failure(error).reason == "SESSION_NOT_FOUND"
            return False

        self.assertTrue(eventually(gone, limit=5))


class OperationsTest(unittest.TestCase):
    def test_health_and_reflection(self):
        for service in ("", "paceline.v1.InferenceService", "paceline.v1.SessionService"):
            self.assertTrue(router.health(service), service)
        services = router.reflected_services()
        for service in ("InferenceService", "SessionService", "ClusterService"):
            self.assertIn(f"paceline.v1.{service}", services)

    def test_status_lists_the_cluster(self):
        status = router.status()
        self.assertEqual([w.role for w in status.workers], ["target", "target", "draft"])
        self.assertEqual({w.address for w in status.workers},
                         {m.address for m in cluster.members if m.role != "router"})
        self.assertEqual({w.state for w in status.workers}, {cluster_pb2.WORKER_STATE_READY})

    def test_unknown_worker_does_not_drain(self):
        failure = failure_of(router.cluster.DrainWorker, cluster_pb2.DrainWorkerRequest(address="127.0.0.1:1"))
        self.assertEqual(failure.code, grpc.StatusCode.NOT_FOUND)


class LimitsTest(unittest.TestCase):
    def test_overload_is_typed(self):
        with router_before(cluster.role("target")[0], "--max-in-flight=1", "--max-queue=1") as own, \
                Router(own.address) as calls:
            long = spec(PROMPT, max_tokens=1500, ignore_eos=True, sample_count=8)
            in_router = lambda: metric(own.metrics, "paceline_router_requests_in_flight")
            running = Stream(calls, long)
            running.read_until(1)
            queued = Stream(calls, long)
            self.assertTrue(eventually(lambda: in_router() == 2))
            failure = failure_of(calls.generate, spec(PROMPT))
            running.cancel()
            queued.read_until(1)
            queued.cancel()
            self.assertEqual((failure.code, failure.reason), (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"))
            self.assertIn("RetryInfo", failure.details)
            self.assertIn("QuotaFailure", failure.details)
            self.assertIsNotNone(failure.pushback_ms)

    def test_operators_service_on_a_port_of_its_own(self):
        with router_before(cluster.role("target")[0], "--cluster-listen=127.0.0.1:0") as own, \
                Router(own.address) as calls:
            calls.generate(spec(PROMPT, max_tokens=2))
            self.assertEqual(failure_of(calls.status).code, grpc.StatusCode.UNIMPLEMENTED)
            with Router(read_line(own.process, r"cluster listening on (\S+)")[1]) as operators:
                self.assertEqual(len(operators.status().workers), 1)
                self.assertEqual(failure_of(operators.generate, spec(PROMPT)).code, grpc.StatusCode.UNIMPLEMENTED)


class DrainTest(unittest.TestCase):
    def test_drained_worker_takes_no_more(self):
        with Cluster(targets=2, drafts=0) as own, Router(own.router) as calls:
            drained = own.role("target")[0].address
            done = subprocess.run([str(bin_folder() / "paceline"), "drain", "--router", own.router, drained],
                                  capture_output=True, text=True, timeout=20)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertTrue(eventually(lambda: cluster_pb2.WORKER_STATE_DRAINING in
                                       {w.state for w in calls.status().workers if w.address == drained}))
            streams = [Stream(calls, spec(PROMPT, seed=n, max_tokens=10)).finish() for n in range(8)]
            self.assertNotIn(drained, {s.start.worker for s in streams})


if __name__ == "__main__":
    unittest.main()
