"""Muon: momentum whose matrix updates are orthogonalised (K. Jordan et al., 2024), AdamW for everything else.

An update is scaled by 0.2 sqrt(max(rows, columns)), so that its RMS is AdamW's and both share one learning rate
(J. Liu et al., arXiv 2502.16982)."""

import collections

import torch


def orthogonalise(batch):
    """Nearly U V^T of each matrix of [n, rows, columns]: five steps of a quintic Newton-Schulz iteration."""
    x = batch.bfloat16() if batch.is_cuda else batch.float()
    wide = x.shape[-2] > x.shape[-1]
    x = x.transpose(-1, -2) if wide else x
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        a = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.transpose(-1, -2) if wide else x).to(batch.dtype)


class Muon(torch.optim.Optimizer):
    """For the hidden matrices alone: embeddings, head and norms belong to AdamW."""

    def __init__(self, matrices, lr, momentum=0.95, weight_decay=0.1):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = collections.defaultdict(list)
            for p in group["params"]:
                shapes[tuple(p.shape)].append(p)
            for same in shapes.values():
                self._step(same, group)

    def _step(self, same, group):
        pushes = []
        for p in same:
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - group["momentum"])
            pushes.append(p.grad.lerp(buffer, group["momentum"]))
        for p, update in zip(same, orthogonalise(torch.stack(pushes))):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)
