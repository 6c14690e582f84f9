#!/usr/bin/env python3
"""Makes logits.json: logits of tiny models in float32, for tests of the decoder.

    python3 tests/golden/make_logits.py > tests/golden/logits.json

By HF transformers where it is installed, else by the few lines of torch in `reference` below (Debian's
python3-torch is enough); the file says by which. The weights are not stored: both sides make them by the
rule of `weight`, which worker/model/golden_logits_test.cc states again. All of them are exact in bf16."""

import json
import math
import sys

import torch

try:
    import transformers
except ImportError:
    transformers = None

MASK = (1 << 64) - 1


def fnv(name):
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) & MASK
    return h


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def weight(name, i, dims):
    """Matrices: k / 256 with k in [-128, 128); norms: 1 + k / 128 with k in [-32, 32); biases: k / 256."""
    k = mix((fnv(name) + i) & MASK) & 255
    if dims == 2 or name.endswith(".bias"):
        return (k - 128) / 256
    return 1 + (k // 4 - 32) / 128


BASE = dict(vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=10000.0,
            tie_word_embeddings=False, eos_token_id=2, bos_token_id=1)
CASES = {
    "llama": ("LlamaForCausalLM", {}),
    "llama_tied_mha": ("LlamaForCausalLM", dict(num_key_value_heads=4, tie_word_embeddings=True)),
    "llama_attention_bias": ("LlamaForCausalLM", dict(attention_bias=True)),
    "llama3_rope": ("LlamaForCausalLM", dict(rope_theta=300.0, rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32})),
    "linear_rope": ("LlamaForCausalLM", dict(rope_scaling={"rope_type": "linear", "type": "linear", "factor": 2.0})),
    "mistral_head_dim": ("MistralForCausalLM", dict(head_dim=10, sliding_window=None)),
    "qwen2": ("Qwen2ForCausalLM", dict(rope_theta=1e6)),
}


def by_transformers(architecture, settings, tokens):
    model_class = getattr(transformers, architecture)
    model = model_class(model_class.config_class(**settings)).eval().float()
    for name, parameter in model.named_parameters():
        values = [weight(name, i, parameter.dim()) for i in range(parameter.numel())]
        parameter.copy_(torch.tensor(values).reshape(parameter.shape))
    return model(torch.tensor([tokens])).logits[0]


def frequencies(settings, head_dim):
    inv = 1.0 / settings["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
    scaling = settings.get("rope_scaling")
    if not scaling:
        return inv
    if scaling["rope_type"] == "linear":
        return inv / scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    old = scaling["original_max_position_embeddings"]
    out = []
    for f in inv.tolist():
        wavelength = 2 * math.pi / f
        if wavelength < old / high:
            out.append(f)
        elif wavelength > old / low:
            out.append(f / scaling["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            out.append((1 - smooth) * f / scaling["factor"] + smooth * f)
    return torch.tensor(out)


def reference(architecture, settings, tokens):
    hidden, heads, kv_heads = (settings[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    head_dim = settings.get("head_dim", hidden // heads)
    ffn, vocab = settings["intermediate_size"], settings["vocab_size"]
    qkv_bias = settings.get("attention_bias", architecture == "Qwen2ForCausalLM")
    o_bias = settings.get("attention_bias", False)
    n = len(tokens)

    def tensor(name, *shape):
        values = [weight(name, i, len(shape)) for i in range(math.prod(shape))]
        return torch.tensor(values).reshape(shape)

    def linear(x, name, out, bias=False):
        y = x @ tensor(name + ".weight", out, x.shape[-1]).T
        return y + tensor(name + ".bias", out) if bias else y

    def norm(x, name):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + settings["rms_norm_eps"])
        return x * scale * tensor(name + ".weight", x.shape[-1])

    angles = torch.outer(torch.arange(n).float(), frequencies(settings, head_dim))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None, :]

    def rope(x):  # pairs (i, i + head_dim / 2) as complex numbers
        z = torch.complex(x[..., : head_dim // 2], x[..., head_dim // 2 :]) * turn
        return torch.cat([z.real, z.imag], -1)

    embedding = tensor("model.embed_tokens.weight", vocab, hidden)
    x = embedding[torch.tensor(tokens)]
    mask = torch.full((n, n), -math.inf).triu(1)
    for layer in range(settings["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        y = norm(x, at + "input_layernorm")
        q = rope(linear(y, at + "self_attn.q_proj", heads * head_dim, qkv_bias).reshape(n, heads, head_dim))
        k = rope(linear(y, at + "self_attn.k_proj", kv_heads * head_dim, qkv_bias).reshape(n, kv_heads, head_dim))
        v = linear(y, at + "self_attn.v_proj", kv_heads * head_dim, qkv_bias).reshape(n, kv_heads, head_dim)
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(head_dim) + mask
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(n, heads * head_dim)
        x = x + linear(out, at + "self_attn.o_proj", hidden, o_bias)
        y = norm(x, at + "post_attention_layernorm")
        gate = torch.nn.functional.silu(linear(y, at + "mlp.gate_proj", ffn))
        x = x + linear(gate * linear(y, at + "mlp.up_proj", ffn), at + "mlp.down_proj", hidden)
    x = norm(x, "model.norm")
    return x @ embedding.T if settings["tie_word_embeddings"] else linear(x, "lm_head", vocab)


def run(architecture, changes):
    settings = dict(BASE, **changes)
    tokens = [(7 * i * i + 3 * i + 5) % settings["vocab_size"] for i in range(40)]
    with torch.no_grad():
        logits = (by_transformers if transformers else reference)(architecture, settings, tokens)
    rows = [0, 1, 13, 39]
    settings["architectures"] = [architecture]
    return {"config": settings, "tokens": tokens,
            "logits": {str(r): [round(float(v), 5) for v in logits[r]] for r in rows}}


def main():
    cases = {name: run(*case) for name, case in CASES.items()}
    by = f"transformers {transformers.__version__}" if transformers else "the reference in make_logits.py"
    cases = {"made_by": f"{by}, torch {torch.__version__}", "cases": cases}
    json.dump(cases, sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
