#!/usr/bin/env python3
"""Trains the bundled pair: tokenizer, target with early exits, draft distilled from it; measures both
and writes models/. See README.md beside this file."""

import argparse
import json
import math
import pathlib
import sys
import time

PROMPTS = ["Once upon a time", "It was a dark and stormy night", "The old man looked at the sea and",
           "\"I do not believe you,\" said", "There was once a little girl who", "In the spring of the year",
           "The train left London at", "My dear sister,", "Tom and Lily went to the", "Nobody in the village knew",
           "The captain ordered", "When she opened the door,", "It is a truth that", "The dog ran after",
           "At last the letter came.", "He had never been so", "One day, a boy named", "The house stood on",
           "\"Where have you been?\"", "Snow fell on the"]


def fail(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def batches(data, batch, context, generator, device):
    import torch
    while True:
        start = torch.randint(len(data) - context - 1, (batch,), generator=generator)
        rows = torch.stack([data[i:i + context + 1] for i in start.tolist()])
        yield rows.long().to(device, non_blocking=True)


def learning_rate(step, steps, peak, warm_up):
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))))


def make_optimizers(model, peak, kind):
    """AdamW 0.9/0.95, decay 0.1 on matrices; with "muon" the layers' matrices are Muon's."""
    import torch
    from muon import Muon
    hidden = [p for n, p in model.named_parameters() if p.dim() == 2 and n.startswith("layers.")] if kind == "muon" else []
    taken = {id(p) for p in hidden}
    matrices = [p for p in model.parameters() if p.dim() == 2 and id(p) not in taken]
    rest = [p for p in model.parameters() if p.dim() != 2]
    adam = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
                             lr=peak, betas=(0.9, 0.95))
    return [adam, Muon(hidden, peak)] if hidden else [adam]


def run_training(model, loss_of, stream, steps, peak, args):
    """Cosine with warm-up, clip 1, bf16 autocast on a GPU."""
    import torch
    optimizers = make_optimizers(model, peak, args.optimizer)
    begin, shown = time.monotonic(), 0.0
    for step in range(steps):
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = learning_rate(step, steps, peak, min(200, steps // 10 + 1))
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            loss = loss_of(next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        if step % max(1, steps // 20) == 0 or step == steps - 1:
            shown = loss.item()
            print(f"  step {step} of {steps}: loss {shown:.4f}, {time.monotonic() - begin:.0f} s", flush=True)
    return {"steps": steps, "seconds": round(time.monotonic() - begin, 1), "last_loss": round(shown, 4)}


def target_loss(model, tokens, exit_weight):
    import torch.nn.functional as F
    """Next-token loss plus exit_weight times the mean loss of the early exits."""
    logits, early = model(tokens[:, :-1], exits=True) if exit_weight > 0 else (model(tokens[:, :-1]), [])
    goal = tokens[:, 1:].flatten()
    loss = F.cross_entropy(logits.float().flatten(0, 1), goal)
    for exit_logits in early:
        loss = loss + exit_weight / len(early) * F.cross_entropy(exit_logits.float().flatten(0, 1), goal)
    return loss


def draft_loss(draft, target, tokens):
    import torch
    import torch.nn.functional as F
    with torch.no_grad():
        teacher = F.log_softmax(target(tokens[:, :-1]).float(), -1)
    logits = draft(tokens[:, :-1]).float()
    student = F.log_softmax(logits, -1)
    kl = (teacher.exp() * (teacher - student)).sum(-1).mean()
    return 0.3 * F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) + 0.7 * kl


def published(model):
    """The same weights as they are served: rounded to bf16, computed in float32."""
    import copy
    rounded = copy.deepcopy(model).eval()
    for p in rounded.parameters():
        p.data = p.data.bfloat16().float()
    return rounded


def held_out(measured, models, corpus, tokenizer, held, device):
    """Bits per character of each model on each kind of held-out text, into `measured`."""
    import measure
    for kind, texts in held.items():
        ids, characters = corpus.encode(tokenizer, texts), sum(map(len, texts))
        measured[f"held_out_{kind}"] = {"characters": characters, "tokens": len(ids)}
        for name, model in models.items():
            measured[f"held_out_{kind}"][name] = measure.bits_per_character(model, ids, characters, model.s.context, device)


def reference(corpus, train, texts, path):
    """The bar for the held-out novels: a 22.0 M parameter recipe of the same corpus reached a cross entropy of 3.675
    per token of its own vocabulary of 8,192; in bits per character with such a vocabulary made here."""
    tokenizer = corpus.train_tokenizer(train, 8192, path)
    path.unlink()
    tokens, characters = len(corpus.encode(tokenizer, texts)), sum(map(len, texts))
    return {"vocabulary": 8192, "tokens": tokens, "cross_entropy_per_token": 3.675,
            "bits_per_character": 3.675 / math.log(2) * tokens / characters}


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data/text", help="folder with novels.txt.xz and the stories")
    parser.add_argument("--out", default="models", help="where target/, draft/ and measured.json go")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target-steps", type=int, default=4000)
    parser.add_argument("--draft-steps", type=int, default=3600)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--dropout", type=float, default=0.2, help="in the target's training")
    parser.add_argument("--exit-weight", type=float, default=0.8, help="of the exits' mean loss beside the last layer's")
    parser.add_argument("--target-only", action="store_true",
                        help="stop after the target's bits per character: with --exit-weight 0, the price of the exits")
    parser.add_argument("--batch", type=int, default=32, help="sequences of 1,024 tokens per step")
    parser.add_argument("--short", action="store_true", help="a few steps of tiny models on any device: tries the script")
    return parser.parse_args()


def prepare(args):
    try:
        import torch
    except ImportError:
        fail("PyTorch is not installed; train on a machine that has it (see tools/train/README.md)")
    if not torch.cuda.is_available() and not args.short:
        fail("no CUDA GPU found; the pair takes minutes on one and days without (--short tries the script anywhere)")
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if not (pathlib.Path(args.data) / "novels.txt.xz").exists():
        fail(f"{args.data}/novels.txt.xz not found; --data names the folder with the text")
    torch.manual_seed(args.seed)
    return torch


class Bytes:
    """Stands in for the tokenizer in --short runs where HF tokenizers is not installed."""

    def encode_batch(self, texts):
        class Encoding:
            def __init__(self, text):
                self.ids = [b + 1 for b in text.encode()]
        return [Encoding(t) for t in texts]

    def decode(self, ids):
        return bytes(i - 1 for i in ids if 0 < i <= 256).decode(errors="replace")


def build_tokenizer(args, corpus, texts, vocab, path):
    try:
        return corpus.train_tokenizer(texts, vocab, path)
    except ImportError:
        if not args.short:
            fail("HF tokenizers is not installed; it trains the vocabulary")
        path.write_text("{}")
        return Bytes()


def main():
    args = parse()
    torch = prepare(args)
    import card
    import corpus
    import export
    import measure
    from llama import Llama, Shape

    if args.short:
        target_shape = Shape(3, 64, 4, 2, 16, 128, 512, 64, exits=(1, 2))
        draft_shape = Shape(1, 32, 2, 1, 16, 64, 512, 64)
        args.target_steps, args.draft_steps, args.batch = 20, 20, 4
    else:
        target_shape = Shape(10, 384, 8, 4, 64, 768, 4096, 1024, exits=(2, 4, 5, 7), dropout=args.dropout)
        draft_shape = Shape(2, 256, 4, 2, 64, 384, 4096, 1024)

    novels, stories = corpus.read_documents(args.data)
    if args.short:
        novels, stories = novels[:2], stories[:50]
    train, held = corpus.split(novels, stories, args.seed, story_repeats=4)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(args, corpus, train, target_shape.vocab, out / "tokenizer.json")
    data = torch.tensor(corpus.encode(tokenizer, train), dtype=torch.int16)
    print(f"corpus: {sum(map(len, train)):,} characters, {len(data):,} tokens", flush=True)

    generator = torch.Generator().manual_seed(args.seed)
    stream = batches(data, args.batch, target_shape.context, generator, args.device)
    target = Llama(target_shape).to(args.device)
    measured = {"seed": args.seed, "exit_weight": args.exit_weight, "dropout": args.dropout, "optimizer": args.optimizer,
                "parameters": {"target": sum(p.numel() for p in target.parameters())}}
    measured["target_training"] = run_training(target, lambda t: target_loss(target, t, args.exit_weight), stream, args.target_steps, 2e-3, args)

    if args.target_only:
        held_out(measured, {"target": published(target)}, corpus, tokenizer, held, args.device)
        print(json.dumps(measured, indent=2))
        return

    draft = Llama(draft_shape).to(args.device)
    measured["parameters"]["draft"] = sum(p.numel() for p in draft.parameters())
    measured["shapes"] = {"target": vars(target_shape), "draft": vars(draft_shape)}
    target.eval()
    measured["draft_training"] = run_training(draft, lambda t: draft_loss(draft, target, t), stream, args.draft_steps, 4e-3, args)

    target, draft = published(target), published(draft)
    held_out(measured, {"target": target, "draft": draft}, corpus, tokenizer, held, args.device)
    if not args.short:
        measured["reference"] = reference(corpus, train, held["novels"], out / "reference.json")
    context, ids = target_shape.context, corpus.encode(tokenizer, held["novels"])
    measured["exit_agreement"] = measure.exit_agreement(target, ids, context, args.device)
    rows, width, length = (4, 16, 16) if args.short else (64, 64, 192)
    prompts = torch.tensor([ids[i * 997:i * 997 + width] for i in range(rows)], device=args.device)
    measured["acceptance"] = {
        str(t): measure.acceptance(target, draft, prompts, length, t, 1000, args.device) for t in (0, 0.7, 1.0)}
    measured["samples"] = []
    for number, prompt in enumerate(PROMPTS[:2] if args.short else PROMPTS):
        begin = torch.tensor([tokenizer.encode_batch([prompt])[0].ids], device=args.device)
        text = measure.sample(target, begin, 8 if args.short else 80, 0.8, 7 + number, context, args.device)[0].tolist()
        end = text.index(0) if 0 in text else len(text)  # what follows the end of a text is another text
        measured["samples"].append(tokenizer.decode(text[:end]))

    for name, model in (("target", target), ("draft", draft)):
        export.write_model(out / name, model, out / "tokenizer.json")
    (out / "tokenizer.json").unlink()
    measured["prompts"] = PROMPTS[:len(measured["samples"])]
    (out / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    (out / "README.md").write_text(card.write(measured))
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
