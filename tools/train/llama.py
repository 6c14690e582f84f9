"""A Llama decoder small enough to read, with the names and layout of HF's LlamaForCausalLM.

Early exits share the final norm and head: exit e is head(norm(hidden after layer e))."""

import dataclasses
import math

import torch
from torch import nn
import torch.nn.functional as F


@dataclasses.dataclass
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    exits: tuple = ()  # number of layers run before each early exit
    dropout: float = 0.0  # on embeddings and on what each block adds, in training only

    def hf_config(self, eos):
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "num_hidden_layers": self.layers, "hidden_size": self.hidden, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "intermediate_size": self.ffn,
            "vocab_size": self.vocab, "max_position_embeddings": self.context, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
            "bos_token_id": eos, "eos_token_id": eos, "torch_dtype": "bfloat16",
            **({"paceline_exit_layers": list(self.exits)} if self.exits else {}),
        }


class RmsNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
        return (x.float() * scale).to(x.dtype) * self.weight


def rotary(context, head_dim, device):
    inverse = 10000.0 ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angle = torch.outer(torch.arange(context, device=device).float(), inverse)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):  # x: [batch, heads, length, head_dim]
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return (x * cos + turned * sin).to(x.dtype)


def attend(q, k, v):
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    length = q.shape[-2]
    mask = torch.full((length, length), -math.inf, device=q.device).triu(1)
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask, -1) @ v


class Attention(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)

    def forward(self, x, cos, sin):
        s, (batch, length, _) = self.s, x.shape
        q = self.q_proj(x).view(batch, length, s.heads, s.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2)
        group = s.heads // s.kv_heads
        k = rotate(k, cos, sin).repeat_interleave(group, 1)
        y = attend(rotate(q, cos, sin), k, v.repeat_interleave(group, 1))
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden, s.ffn, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.ffn, bias=False)
        self.down_proj = nn.Linear(s.ffn, s.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.input_layernorm = RmsNorm(s.hidden)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = RmsNorm(s.hidden)
        self.mlp = Mlp(s)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, x, cos, sin):
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.embed_tokens = nn.Embedding(s.vocab, s.hidden)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = RmsNorm(s.hidden)
        self.dropout = nn.Dropout(s.dropout)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * s.layers) if deep else 1))

    def head(self, hidden):
        return F.linear(self.norm(hidden), self.embed_tokens.weight)

    def forward(self, tokens, exits=False):
        """Logits [batch, length, vocab]; with exits=True also a list of the exits' logits."""
        cos, sin = rotary(tokens.shape[1], self.s.head_dim, tokens.device)
        x, early = self.dropout(self.embed_tokens(tokens)), []
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, cos, sin)
            if exits and number in self.s.exits:
                early.append(self.head(x))
        return (self.head(x), early) if exits else self.head(x)

    def hf_tensors(self):
        """name -> bf16 tensor, as HF's checkpoint of a tied model holds them."""
        return {"model." + name: p.detach().to(torch.bfloat16).cpu() for name, p in self.named_parameters()}
