#!/usr/bin/env python3
"""Writes a model of Llama-3-8B's layers with the bundled pair's vocabulary of 4,096, so that the bundled draft can draft
for it: for figures of speed.
  tests/bench/random_llama.py FOLDER             config and tokenizer, for --load-format=dummy
  tests/bench/random_llama.py FOLDER --weights   and random bf16 weights (14 GB), for the time that loading takes; needs
                                                 PyTorch, safetensors and a GPU"""

import json
import pathlib
import shutil
import sys

if "--weights" in sys.argv:
    import torch
    from safetensors.torch import save_file

BUNDLED = pathlib.Path(__file__).resolve().parents[2] / "models" / "target"
HIDDEN, FFN, KV, LAYERS, VOCAB = 4096, 14336, 1024, 32, 4096


def matrix(rows, columns):
    return (torch.randn(rows, columns, device="cuda") * 0.02).to(torch.bfloat16).cpu()


def ones():
    return torch.ones(HIDDEN, dtype=torch.bfloat16)


def layer(number):
    p = f"model.layers.{number}."
    shapes = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV, HIDDEN), "self_attn.v_proj": (KV, HIDDEN),
              "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN),
              "mlp.down_proj": (HIDDEN, FFN)}
    tensors = {f"{p}{name}.weight": matrix(*shape) for name, shape in shapes.items()}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{p}{norm}.weight"] = ones()
    return tensors


def write_weights(folder):
    tensors = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN), "lm_head.weight": matrix(VOCAB, HIDDEN),
               "model.norm.weight": ones()}
    for number in range(LAYERS):
        tensors |= layer(number)
    save_file(tensors, folder / "model.safetensors")


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "num_hidden_layers": LAYERS,
              "hidden_size": HIDDEN, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
              "intermediate_size": FFN, "vocab_size": VOCAB, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
              "rope_theta": 500000.0, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
              "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copy(BUNDLED / name, folder)
    if "--weights" in sys.argv[2:]:
        write_weights(folder)


main()
