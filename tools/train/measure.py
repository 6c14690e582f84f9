"""What the model card states, measured from the published bf16 weights."""

import math

import torch
import torch.nn.functional as F

from noise import gumbel


@torch.no_grad()
def bits_per_character(model, ids, characters, context, device, batch=16):
    """Cross entropy of every token but the first, over windows of `context`, per character of text."""
    total, count = 0.0, 0
    windows = [ids[i:i + context + 1] for i in range(0, len(ids) - 1, context)]
    for start in range(0, len(windows), batch):
        for window in _same_length(windows[start:start + batch]):
            tokens = torch.tensor(window, device=device)
            loss = F.cross_entropy(model(tokens[:, :-1]).float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
            total, count = total + loss.item(), count + tokens[:, 1:].numel()
    return {"bits_per_character": total / math.log(2) / characters, "cross_entropy_per_token": total / count}


def _same_length(windows):
    full = [w for w in windows if len(w) == len(windows[0])]
    rest = [w for w in windows if len(w) != len(windows[0]) and len(w) > 1]
    return ([full] if full else []) + [[w] for w in rest]


@torch.no_grad()
def sample(model, prompt, length, temperature, seed, context, device):
    """Continues prompts [batch, n] by the one rule of the product; seed + row is a row's seed."""
    tokens = prompt.clone()
    for _ in range(length):
        logits = model(tokens[:, -context:])[:, -1].double()
        tokens = torch.cat([tokens, _pick(logits, tokens.shape[1], temperature, seed)[:, None]], 1)
    return tokens


def _pick(logits, position, temperature, seed):
    if temperature == 0:
        return logits.argmax(-1)
    scores = torch.log_softmax(logits / temperature, -1)
    for row in range(len(scores)):
        scores[row] += gumbel(seed + row, torch.tensor([position]), 0, logits.shape[-1], logits.device)[0]
    return scores.argmax(-1)


def _picks(logits, first, temperature, seed):
    """The rule's token after every position of [batch, length, vocab] logits."""
    if temperature == 0:
        return logits.argmax(-1)
    picks = []
    for row in range(len(logits)):
        positions = torch.arange(first, first + logits.shape[1])
        noise = gumbel(seed + row, positions, 0, logits.shape[-1], logits.device)
        picks.append((torch.log_softmax(logits[row].double() / temperature, -1) + noise).argmax(-1))
    return torch.stack(picks)


@torch.no_grad()
def acceptance(target, draft, prompts, length, temperature, seed, device, depth=8):
    """Greedy or shared-noise acceptance of the first draft on the target's own text, and survival:
    the share of positions at which the next 1..depth tokens are all drafted right, the draft
    continuing its own chain (approximated by teacher forcing, exact while all so far agree)."""
    context = target.s.context
    text = sample(target, prompts, length, temperature, seed, context, device)
    begin = prompts.shape[1]
    equal = _picks(draft(text[:, :-1])[:, begin - 1:], begin, temperature, seed) == text[:, begin:]
    survival = [equal.unfold(1, d, 1).all(-1).float().mean().item() for d in range(1, depth + 1)]
    return {"first_draft": equal.float().mean().item(), "survival": survival}


@torch.no_grad()
def exit_agreement(target, ids, context, device, windows=32):
    agree, count = [0.0] * len(target.s.exits), 0
    for i in range(min(windows, (len(ids) - 1) // context)):
        tokens = torch.tensor([ids[i * context:(i + 1) * context]], device=device)
        final, early = target(tokens, exits=True)
        best = final.argmax(-1)
        for e, logits in enumerate(early):
            agree[e] += (logits.argmax(-1) == best).float().sum().item()
        count += best.numel()
    return {str(layer): a / count for layer, a in zip(target.s.exits, agree)}
