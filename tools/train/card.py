"""The model card, models/README.md, from what the training script measured."""

HEAD = """# Models

`target/` and `draft/` are the pair that quickstart, tests and benchmarks use: LlamaForCausalLM in HF layout, bf16,
one byte-level BPE of {vocab:,} ids, trained by `tools/train/train.py` (seed {seed}). `paceline up` without `--model`
and `--draft` uses them.

| | layers | hidden | heads / KV heads | head dim | FFN | context | parameters |
|---|---|---|---|---|---|---|---|
{shapes}

The draft multiplies {cost:.1%} of the target's weights per token.

## Data

Public-domain English novels, 1839-1919 (the 100 English Novels collection of computationalstylistics; public domain
by age), and a sample of TinyStories (CDLA-Sharing-1.0), each story four times. Held out: the last 2 % of every
novel, and 2 % of the stories.

## Recipe

Next-token loss plus {exit_weight} x the mean loss of the early exits after layers {exits} through the shared norm and head;
dropout {dropout},
{target_steps} steps in {target_seconds} s. The draft is distilled from the target (0.3 cross entropy + 0.7 KL);
{draft_steps} steps in {draft_seconds} s. {optimizer}, cosine, bf16 autocast, one GPU.
"""


def _shape_row(name, shape, parameters):
    return (f"| {name} | {shape['layers']} | {shape['hidden']} | {shape['heads']} / {shape['kv_heads']} | "
            f"{shape['head_dim']} | {shape['ffn']} | {shape['context']:,} | {parameters / 1e6:.1f} M |")


def _matrices(shape):
    """Weights multiplied per token: layers and the shared head."""
    attention = shape["hidden"] * shape["head_dim"] * 2 * (shape["heads"] + shape["kv_heads"])
    return shape["layers"] * (attention + 3 * shape["hidden"] * shape["ffn"]) + shape["vocab"] * shape["hidden"]


def _losses(measured):
    yield "## Measured by the script, from the bf16 weights\n"
    yield "| held out | characters | target bits/character | target CE/token | draft bits/character |"
    yield "|---|---|---|---|---|"
    for name in ("novels", "stories"):
        m = measured["held_out_" + name]
        yield (f"| {name} | {m['characters']:,} | {m['target']['bits_per_character']:.4f} | "
               f"{m['target']['cross_entropy_per_token']:.4f} | {m['draft']['bits_per_character']:.4f} |")
    yield ""
    if "reference" in measured:
        r = measured["reference"]
        yield (f"The recipe that this one had to equal, a cross entropy of {r['cross_entropy_per_token']} per token of a "
               f"vocabulary of {r['vocabulary']:,}, is {r['bits_per_character']:.4f} bits per character of the same novels.\n")
    yield "Agreement of each exit's greedy token with the last layer's: " + ", ".join(
        f"layer {layer} {share:.3f}" for layer, share in measured["exit_agreement"].items()) + ".\n"


def _acceptance(measured):
    yield "| temperature | first draft accepted | the first 1, 2, ... 8 drafts all accepted |"
    yield "|---|---|---|"
    for temperature, m in measured["acceptance"].items():
        survival = " ".join(f"{s:.3f}" for s in m["survival"])
        yield f"| {temperature} | {m['first_draft']:.3f} | {survival} |"
    yield ""


def _samples(measured):
    yield "## Samples (temperature 0.8; seeds 7, 8, ...)\n"
    for prompt, text in zip(measured["prompts"], measured["samples"]):
        continuation = text[len(prompt):].replace("\n", " ")
        yield f"- **{prompt}**{continuation}\n"


def write(measured):
    target, draft = measured["shapes"]["target"], measured["shapes"]["draft"]
    shapes = "\n".join(_shape_row(n, measured["shapes"][n], measured["parameters"][n]) for n in ("target", "draft"))
    head = HEAD.format(
        optimizer={"muon": "Muon for the layers' matrices and AdamW for the rest", "adamw": "AdamW"}[measured["optimizer"]],
        exit_weight=measured["exit_weight"], dropout=measured["dropout"],
        vocab=target["vocab"], seed=measured["seed"], shapes=shapes, cost=_matrices(draft) / _matrices(target),
        exits=", ".join(map(str, target["exits"])), target_steps=measured["target_training"]["steps"],
        target_seconds=measured["target_training"]["seconds"], draft_steps=measured["draft_training"]["steps"],
        draft_seconds=measured["draft_training"]["seconds"])
    return "\n".join([head, *_losses(measured), *_acceptance(measured), *_samples(measured)]) + "\n"
