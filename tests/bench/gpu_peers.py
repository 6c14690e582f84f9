#!/usr/bin/env python3
"""The peers of the CUDA kernels' benchmark through PyTorch, over the same shapes: attention by cuDNN and
FlashAttention-2 on contiguous KV, unfused attention, and cuBLAS. Run by tests/gpu.sh in the same minute."""

import statistics
import sys

try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:
    sys.exit("skipped: no PyTorch")

HEADS, KV_HEADS, DIM = 32, 8, 128
ROTATE = 512 << 20


def microseconds(launch, repeat):
    """The median of seven runs of `repeat` launches, per launch."""
    for i in range(repeat):
        launch(i)
    times = []
    for _ in range(7):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for i in range(repeat):
            launch(i)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / repeat)
    return statistics.median(times)


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def attempt(launch, repeat):
    try:
        return microseconds(launch, repeat)
    except RuntimeError:
        return float("nan")


def decode(batch, context, rows):
    sets = max(1, ROTATE // (batch * context * KV_HEADS * DIM * 4))
    k, v = (random(sets, batch, KV_HEADS, context, DIM) for _ in range(2))
    q = random(batch, HEADS, rows, DIM)
    times = []
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        def launch(i):
            with sdpa_kernel([backend]):
                F.scaled_dot_product_attention(q, k[i % sets], v[i % sets], enable_gqa=True)
        times.append(attempt(launch, 20))
    size = batch * context * KV_HEADS * DIM * 4
    print(f"| B{batch:<3} x {context:<6} rows {rows:<2} | " +
          " | ".join(f"{t:8.1f} | {size / t * 1e-3:6.0f}" for t in times) + " |", flush=True)


def unfused(q, k, v):
    group = HEADS // KV_HEADS
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * DIM ** -0.5
    mask = torch.ones(scores.shape[-2:], device="cuda", dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(mask, float("-inf")), -1) @ v


def prefill(batch, length):
    q, (k, v) = random(batch, HEADS, length, DIM), (random(batch, KV_HEADS, length, DIM) for _ in range(2))
    times = []
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        def launch(_):
            with sdpa_kernel([backend]):
                F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        times.append(attempt(launch, 5))
    times.append(attempt(lambda _: unfused(q, k, v), 1) if batch * length * length <= 1 << 26 else float("nan"))
    flops = 2 * batch * HEADS * DIM * length * (length + 1)
    print(f"| B{batch:<3} x {length:<6} | " + " | ".join(f"{t:9.1f} | {flops / t * 1e-6:5.0f}" for t in times) + " |",
          flush=True)


def linear(name, m, n, k):
    """In a graph, as a small product is over before Python has launched the next."""
    copies = max(1, ROTATE // (2 * n * k))
    w, x = random(copies, n, k), random(m, k)
    out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    repeat = 20 if m <= 256 else 4
    torch.mm(x, w[0].t(), out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(repeat):
            torch.mm(x, w[i % copies].t(), out=out)
    t = microseconds(lambda _: graph.replay(), 1) / repeat
    print(f"| {name:<8} M={m:<5} | {t:8.1f} | {2 * n * k / t * 1e-3:6.0f} | {2 * m * n * k / t * 1e-6:6.1f} |", flush=True)


def attention_peers():
    print("attention on contiguous KV: cuDNN us, GB/s, FlashAttention-2 us, GB/s\n|---|---|---|---|---|")
    for shape in ((64, 2048, 1), (64, 8192, 1), (16, 8192, 1), (1, 8192, 1), (1, 1024, 1), (32, 4096, 1), (32, 4096, 4),
                  (32, 4096, 8)):
        decode(*shape)
    print("\nprefill, causal: cuDNN us, TFLOP/s, FlashAttention-2, unfused\n|---|---|---|---|---|---|---|")
    for batch in (16, 8, 4, 2, 1):
        prefill(batch, 16384 // batch)


def linear_peers():
    print("\ncuBLAS: us, GB/s of weights, TFLOP/s\n|---|---|---|---|")
    for name, n, k in (("qkv", 6144, 4096), ("o", 4096, 4096), ("gate_up", 28672, 4096), ("down", 4096, 14336),
                       ("lm_head", 128256, 4096)):
        for m in (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
            if n < 65536 or m <= 64:
                linear(name, m, n, k)


def main():
    if not torch.cuda.is_available():
        sys.exit("skipped: no GPU")
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    if only in ("", "attention"):
        attention_peers()
    if only in ("", "linear"):
        linear_peers()


main()
