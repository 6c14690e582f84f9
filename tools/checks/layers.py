#!/usr/bin/env python3
"""Checks the layers of ARCHITECTURE.md: who may include whom, which headers stay where, no folder
cycles, file sizes and names. Prints each violation as file:line: reason; exit status 1 if any."""

import collections
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Folder -> layer. A file includes only files of its own folder or of lower layers; in layer 0 the
# allowed edges are listed by hand.
LAYERS = {
    "common": 0, "common/types": 0, "common/rpc": 0, "worker/types": 0, "kernels": 0,
    "kernels/cpu": 0, "kernels/cuda": 0, "proto": 0,
    "worker/kv": 1, "worker/comm": 1,
    "worker/model": 2,
    "worker/runner": 3,
    "worker/spec": 4, "common/text": 4,
    "worker/engine": 5,
    "worker/draft": 6, "router/core": 6,
    "worker/service": 7, "router/service": 7,
    "router": 8, "worker": 8, "cli": 8,
}
LAYER0_EDGES = {
    "common/types": {"common"},
    "common/rpc": {"common", "common/types", "proto"},
    "worker/types": {"common", "common/types"},
    "kernels/cpu": {"kernels"},
    "kernels/cuda": {"kernels"},
}
FREE_FOLDERS = ("tests", "tools")
GRPC_ALLOWED = re.compile(r"^(common/rpc/|cli/|(router|worker)/service/|(router|worker)/main\.cc|tests/)")
CUDA_ALLOWED = re.compile(r"^(kernels/cuda/|worker/comm/|.*_cuda\.)")
INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]')
BANNED_NAMES = re.compile(r"(^|_)(util|utils|misc|helper|helpers)(_|\.|$)")
MAX_LINES = 800


def folder_of(path):
    parts = path.split("/")[:-1]
    while parts:
        name = "/".join(parts)
        if name in LAYERS:
            return name
        parts.pop()
    return None


def sources():
    for top in ("common", "kernels", "worker", "router", "cli", "tests", "tools"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.suffix in (".h", ".cc", ".cu", ".cuh", ".inc"):
                yield path.relative_to(ROOT).as_posix()


def allowed(src, dst):
    if src == dst:
        return True
    if LAYERS[src] == 0:
        return dst in LAYER0_EDGES.get(src, set())
    return LAYERS[dst] < LAYERS[src]


def check_include(path, line, kind, name):
    is_test = path.endswith("_test.cc") or path.endswith("_fuzz.cc") or path.startswith(FREE_FOLDERS)
    if (name.startswith(("grpcpp/", "grpc/")) or name.endswith(".pb.h")) and not GRPC_ALLOWED.match(path):
        yield f"{path}:{line}: gRPC or protobuf header {name} outside service, rpc, cli and main"
    if re.match(r"(cuda|cublas|nccl|cudnn)[a-zA-Z_]*\.h$", name) and not CUDA_ALLOWED.match(path):
        yield f"{path}:{line}: CUDA or NCCL header {name} outside kernels/cuda, worker/comm and *_cuda.*"
    if kind != '"' or is_test:
        return
    src, dst = folder_of(path), folder_of(name)
    if src is None or dst is None:
        return
    if {src.split("/")[0], dst.split("/")[0]} == {"router", "worker"}:
        yield f"{path}:{line}: router and worker include each other ({name})"
    elif not allowed(src, dst):
        yield f"{path}:{line}: {src} (layer {LAYERS[src]}) includes {dst} (layer {LAYERS[dst]})"


def find_cycle(edges):
    state, stack = {}, []

    def visit(node):
        state[node] = 1
        stack.append(node)
        for nxt in sorted(edges[node]):
            if state.get(nxt) == 1:
                return stack[stack.index(nxt):] + [nxt]
            if nxt not in state:
                cycle = visit(nxt)
                if cycle:
                    return cycle
        stack.pop()
        state[node] = 2
        return None

    for node in sorted(edges):
        if node not in state:
            cycle = visit(node)
            if cycle:
                return cycle
    return None


def main():
    errors, edges, count = [], collections.defaultdict(set), 0
    for path in sources():
        count += 1
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        if len(lines) > MAX_LINES:
            errors.append(f"{path}:{len(lines)}: {len(lines)} lines; the limit is {MAX_LINES}")
        if BANNED_NAMES.search(path.split("/")[-1]):
            errors.append(f"{path}:1: a file is named after its noun, not util, misc or helpers")
        for number, text in enumerate(lines, 1):
            match = INCLUDE.match(text)
            if not match:
                continue
            errors.extend(check_include(path, number, match[1], match[2]))
            src, dst = folder_of(path), folder_of(match[2])
            production = not path.endswith(("_test.cc", "_fuzz.cc")) and not path.startswith(FREE_FOLDERS)
            if match[1] == '"' and production and src and dst and src != dst:
                edges[src].add(dst)
    for node in [n for targets in list(edges.values()) for n in targets]:
        edges.setdefault(node, set())
    cycle = find_cycle(edges)
    if cycle:
        errors.append("folder cycle: " + " -> ".join(cycle))
    for error in errors:
        print(error)
    print(f"layers: {count} files, {len(errors)} violations")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
