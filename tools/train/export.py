"""Writes HF directories: config.json, model.safetensors (bf16), generation_config.json, tokenizer.json."""

import json
import pathlib
import shutil
import struct

import torch


def write_safetensors(path, tensors):
    """8 bytes header length, JSON header, then the raw little-endian data in name order."""
    header, offset = {}, 0
    for name in sorted(tensors):
        size = tensors[name].numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(tensors[name].contiguous().view(torch.int16).numpy().tobytes())


def write_model(folder, model, tokenizer_path):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.s.hf_config(eos=0), indent=2) + "\n")
    (folder / "generation_config.json").write_text('{"bos_token_id": 0, "eos_token_id": 0}\n')
    write_safetensors(folder / "model.safetensors", model.hf_tensors())
    if pathlib.Path(tokenizer_path).resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer_path, folder / "tokenizer.json")
