"""A client of the router's public API: calls, typed failures, and streams that remember when what came.

The stubs are made by protoc, as README.md shows, in a folder that goes away with the process."""

import atexit
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
RPC_PROTOS = "/usr/share/gocode/src/github.com/gogo/googleapis"


def _make_stubs():
    folder = tempfile.mkdtemp(prefix="paceline-stubs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    protos = sorted(str(p) for p in (ROOT / "proto/paceline/v1").glob("*.proto"))
    subprocess.run(["protoc", f"-I{ROOT / 'proto'}", f"--python_out={folder}", f"--grpc_python_out={folder}",
                    f"--plugin=protoc-gen-grpc_python={shutil.which('grpc_python_plugin')}", *protos], check=True)
    subprocess.run(["protoc", f"-I{RPC_PROTOS}", f"--python_out={folder}",
                    "google/rpc/status.proto", "google/rpc/error_details.proto"], check=True)
    sys.path.insert(0, folder)


_make_stubs()

from google.rpc import error_details_pb2, status_pb2  # noqa: E402
from paceline.v1 import cluster_pb2, cluster_pb2_grpc, inference_pb2, inference_pb2_grpc  # noqa: E402
from paceline.v1 import session_pb2, session_pb2_grpc  # noqa: E402

pb = inference_pb2


def spec(text=None, *, token_ids=None, model="", request_id="", session_id="", cache_salt="", priority=0,
         prompt_logprobs=False, speculation="auto", logit_bias=None, **sampling):
    """A GenerationSpec; further arguments are fields of its SamplingSpec."""
    generation = pb.GenerationSpec(model=model, request_id=request_id, session_id=session_id, cache_salt=cache_salt,
                                   priority=priority, prompt_logprobs=prompt_logprobs,
                                   sampling=pb.SamplingSpec(**sampling))
    if text is not None:
        generation.text = text
    if token_ids is not None:
        generation.token_ids.ids.extend(token_ids)
    for token, bias in (logit_bias or {}).items():
        generation.sampling.logit_bias[token] = bias
    mode = {"auto": "auto", "always": "draft", "off": "plain", "ngram": "ngram"}[speculation]
    getattr(generation.decoding, mode).SetInParent()
    return generation


class Router:
    """The stubs of one router over one channel."""

    def __init__(self, address):
        self.address = address
        # One subchannel pool each: a router that died must not delay calls to its successor.
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1),
                                                               ("grpc.max_receive_message_length", 16 << 20)])
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(self.channel)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def generate(self, generation, timeout=60):
        return self.inference.GenerateText(pb.GenerateTextRequest(generation=generation), timeout=timeout)

    def status(self):
        return self.cluster.GetClusterStatus(cluster_pb2.GetClusterStatusRequest(), timeout=10)

    def health(self, service=""):
        """True where the service is SERVING (grpc.health.v1, whose messages are two small fields)."""
        check = self.channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=bytes,
                                         response_deserializer=bytes)
        name = service.encode()
        return check(b"\x0a" + bytes([len(name)]) + name, timeout=10) == b"\x08\x01"

    def reflected_services(self):
        """Names by server reflection."""
        call = self.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                                          request_serializer=bytes, response_deserializer=bytes)
        answer = next(iter(call(iter([b"\x3a\x01*"]), timeout=10)))  # list_services = "*"
        return set(re.findall(r"(?:paceline|grpc)\.[\w.]+", answer.decode("utf-8", "replace")))


class Failure:
    """What a failed call said: code, message, and the details of google.rpc.Status by type name."""

    def __init__(self, error):
        self.code, self.message = error.code(), error.details()
        self.details = {}
        trailers = {key: value for key, value in (error.trailing_metadata() or ())}
        self.pushback_ms = int(trailers["grpc-retry-pushback-ms"]) if "grpc-retry-pushback-ms" in trailers else None
        status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
        for packed in status.details:
            name = packed.type_url.rsplit(".", 1)[1]
            message = getattr(error_details_pb2, name)()
            packed.Unpack(message)
            self.details[name] = message
        info = self.details.get("ErrorInfo")
        self.reason = info.reason if info else ""
        self.metadata = dict(info.metadata) if info else {}

    def fields(self):
        """Fields that a BadRequest names."""
        return [v.field for v in self.details["BadRequest"].field_violations] if "BadRequest" in self.details else []

    def __str__(self):
        return f"{self.code.name} {self.reason}: {self.message}"


def failure_of(call, *arguments, **options):
    """The Failure of a call that must fail; a stream is read to its end."""
    try:
        answer = call(*arguments, **options)
        if hasattr(answer, "__iter__"):
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return Failure(error)
    raise AssertionError("the call succeeded")


class Sample:
    def __init__(self):
        self.token_ids, self.text, self.logprobs, self.finish = [], "", [], ""


class Stream:
    """One generation, read by a thread of its own, so that arrival times are those of the messages."""

    def __init__(self, router, generation, timeout=120, _resume=None):
        self._own = None if isinstance(router, Router) else Router(router)
        self._router = self._own or router
        self.generation = generation
        self.start, self.summary, self.failure = None, None, None
        self.samples = {}
        self.arrivals = []  # (seconds of now(), tokens) of each delta
        self.first_indices_ok = True
        self._changed = threading.Condition()
        self._ended = False
        self.begun = self.now()
        if _resume is None:
            self._call = self._router.inference.StreamGenerateText(
                pb.StreamGenerateTextRequest(generation=generation), timeout=timeout)
        else:
            self._call = self._router.inference.ResumeGenerateText(self._resume_request(_resume), timeout=timeout)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @staticmethod
    def now():
        return time.monotonic()

    def _resume_request(self, broken):
        request = pb.ResumeGenerateTextRequest(generation=broken.generation, resume_token=broken.start.resume_token)
        for number, old in broken.samples.items():
            sample = self.samples[number] = Sample()
            sample.token_ids, sample.text, sample.finish = list(old.token_ids), old.text, old.finish
            sample.logprobs = list(old.logprobs)
            received = request.received.add(sample=number, token_ids=old.token_ids,
                                            text_byte_count=len(old.text.encode()))
            if old.finish:
                received.finish_reason = pb.FinishReason.Value(f"FINISH_REASON_{old.finish.upper()}")
        return request

    def _take(self, message):
        kind = message.WhichOneof("event")
        if kind == "start":
            self.start = message.start
        elif kind == "summary":
            self.summary = message.summary
        elif kind == "delta":
            delta = message.delta
            sample = self.samples.setdefault(delta.sample, Sample())
            self.first_indices_ok &= delta.first_index == len(sample.token_ids)
            sample.token_ids.extend(delta.token_ids)
            sample.text += delta.text
            sample.logprobs.extend(delta.logprobs)
            if delta.finish_reason:
                sample.finish = pb.FinishReason.Name(delta.finish_reason).removeprefix("FINISH_REASON_").lower()
            self.arrivals.append((self.now(), len(delta.token_ids)))

    def _read(self):
        try:
            for message in self._call:
                with self._changed:
                    self._take(message)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self.failure = Failure(error)
        except ValueError:  # the channel was closed under the call
            pass
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._own:
            self._own.channel.close()

    def token_count(self):
        return sum(len(s.token_ids) for s in self.samples.values())

    def read_until(self, tokens, timeout=60):
        """Waits for so many tokens, over all samples; raises where the stream ends before."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self.token_count() >= tokens, timeout)
            if self.token_count() < tokens:
                raise AssertionError(f"the stream has {self.token_count()} of {tokens} tokens; {self.failure}")

    def wait(self, timeout=120):
        """Waits for the end, good or bad."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise AssertionError(f"the stream did not end; it has {self.token_count()} tokens")
        return self

    def finish(self, timeout=120):
        """Waits for the end, which must be a good one."""
        self.wait(timeout)
        if self.failure or self.summary is None:
            raise AssertionError(f"the stream broke after {self.token_count()} tokens: {self.failure}")
        return self

    def cancel(self):
        self._call.cancel()

    def resume(self, router, timeout=120):
        """The rest at `router`; its samples begin with what this stream has."""
        return Stream(router, self.generation, timeout, _resume=self)

    def target(self, cluster):
        """The member of the cluster that the request was placed on first."""
        return next(m for m in cluster.members if m.address == self.start.worker)

    @property
    def token_ids(self):
        return self.samples[0].token_ids if 0 in self.samples else []

    @property
    def text(self):
        return self.samples[0].text if 0 in self.samples else ""

    @property
    def failovers(self):
        return self.summary.failover_count if self.summary else 0

    def longest_gap_after(self, moment):
        """The longest wait between two deltas of which the second came after `moment`, in seconds."""
        times = [when for when, _ in self.arrivals]
        return max((b - a for a, b in zip([self.begun, *times], times) if b >= moment), default=0.0)


def scrape(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as reply:
        return reply.read().decode()


def metric(address, name, **labels):
    """The sum of a metric's values over all label sets that agree with `labels`; 0 where there is none."""
    total = 0.0
    for line in scrape(address).splitlines():
        match = re.match(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if not match or match[1] != name:
            continue
        found = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
        if all(found.get(key) == value for key, value in labels.items()):
            total += float(match[3])
    return total
