#!/usr/bin/env python3
"""Whole-model logits on the GPU beside HF transformers: for a model of random bf16 weights, the error of Paceline's logits
against float32 is at most twice that of transformers in bf16, whether the tokens came in one chunk, in chunks of 100 or
one by one. Needs PyTorch, transformers and a GPU; PROGRAM is cuda_logits of the tree that tests/gpu.sh takes.
  tests/golden/gpu_logits.py PROGRAM [CONFIG.json] [--layers N] [--tokens N]
Without CONFIG the shape is Llama-3-8B's with 4 layers."""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy
import torch
import transformers

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "num_hidden_layers": 4,
         "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
         "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
         "rope_theta": 500000.0, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
         "bos_token_id": 0, "eos_token_id": 0}


def error(logits, reference):
    return ((logits.double() - reference).norm() / reference.norm()).item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("config", nargs="?")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tokens", type=int, default=300)
    args = parser.parse_args()
    values = json.loads(pathlib.Path(args.config).read_text()) if args.config else LLAMA
    if args.layers:
        values["num_hidden_layers"] = args.layers
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(**values)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        for name, parameter in model.named_parameters():  # norms and biases that do something
            if parameter.dim() == 1:
                parameter.data += torch.randn_like(parameter) * 0.1
    tokens = torch.randint(0, config.vocab_size, (1, args.tokens), device="cuda")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(values))
        half = model(tokens).logits[0].float().cpu()
        reference = model.float()(tokens).logits[0].double().cpu()
        del model
        torch.cuda.empty_cache()
        tokens[0].int().cpu().numpy().tofile(f"{folder}/tokens")
        allowed = 2 * error(half, reference)
        print(f"{config.model_type}, {config.num_hidden_layers} layers, {args.tokens} tokens")
        print(f"| logits | error against float32 |\n|---|---|\n| transformers, bf16 | {allowed / 2:.2e} |")
        failed = not 0 < allowed < 0.1
        for chunk in (args.tokens, 100, 1):
            subprocess.run([args.program, folder, f"{folder}/tokens", str(chunk), f"{folder}/logits"], check=True)
            logits = torch.from_numpy(numpy.fromfile(f"{folder}/logits", dtype=numpy.float32)).view(reference.shape)
            found = error(logits, reference)
            print(f"| Paceline, chunks of {chunk} | {found:.2e} |")
            failed |= not found <= allowed
    print("FAILED" if failed else "passed")
    sys.exit(failed)


main()
