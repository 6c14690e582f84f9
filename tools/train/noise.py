"""The Gumbel noise of kernels/noise.h in torch, bit for bit in its 32-bit words, so that acceptance is
measured with the noise that target and drafter share when they serve."""

import torch

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def _mulhilo(a, b):
    # 32 x 32 -> 64 bits in int64 without overflow: split b into 16-bit halves.
    low = a * (b & 0xFFFF)
    high = a * (b >> 16)
    mid = (low >> 16) + (high & 0xFFFFFFFFFFFF)
    lo = ((mid << 16) | (low & 0xFFFF)) & _MASK
    return (mid >> 16) & _MASK, lo


def philox(seed, position, sample, quads, device):
    """Words [len(position), quads, 4] for counters (position, sample, quad, 0)."""
    c0 = position.to(device).long()[:, None].expand(-1, quads)
    c1 = torch.full_like(c0, sample)
    c2 = torch.arange(quads, device=device)[None, :].expand_as(c0)
    c3 = torch.zeros_like(c0)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        h0, l0 = _mulhilo(c0, _M0)
        h1, l1 = _mulhilo(c2, _M1)
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack([c0, c1, c2, c3], -1)


def gumbel(seed, position, sample, vocab, device):
    """G(seed, sample, position, v): [len(position), vocab] float64."""
    words = philox(seed, position, sample, (vocab + 3) // 4, device).flatten(1)[:, :vocab].double()
    low = -torch.log1p(-(words + 0.5) * 2.0**-32)
    high = -torch.log((2.0**32 - words - 0.5) * 2.0**-32)
    return -torch.log(torch.where(words < 2.0**31, low, high))
