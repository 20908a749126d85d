"""One table: what a paper calls it, what the code calls it, what the released file calls it, and its shape.

A row names one example of each: layer 3, the first with a mixture, and of its experts the first. Shapes are
read off V3 itself.
"""

from dataclasses import replace
from html import escape

import torch

from minids.hub.names import released_tensors
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek

LAYER = "layers.3"
ATTENTION, MIXTURE = f"{LAYER}.self_attn", f"{LAYER}.mlp"
ROWS = (  # the paper's symbol, its meaning, the module in the library, the tensor in the released file
    ("Emb", "embedding", "embed_tokens", "model.embed_tokens.weight"),
    ("W^{DQ}", "down to the query latent", f"{ATTENTION}.q_a_proj", f"model.{ATTENTION}.q_a_proj.weight"),
    ("[W^{UQ}; W^{QR}]", "up to the queries, without and with position", f"{ATTENTION}.q_b_proj",
     f"model.{ATTENTION}.q_b_proj.weight"),
    ("[W^{DKV}; W^{KR}]", "down to what is cached: latent, and key with position", f"{ATTENTION}.kv_a_proj_with_mqa",
     f"model.{ATTENTION}.kv_a_proj_with_mqa.weight"),
    ("[W^{UK}; W^{UV}]", "up to keys and values", f"{ATTENTION}.kv_b_proj", f"model.{ATTENTION}.kv_b_proj.weight"),
    ("W^{O}", "output of attention", f"{ATTENTION}.o_proj", f"model.{ATTENTION}.o_proj.weight"),
    ("e_i", "what expert i answers to", f"{MIXTURE}.gate", f"model.{MIXTURE}.gate.weight"),
    ("b_i", "bias that balances the load", f"{MIXTURE}.gate.expert_bias",
     f"model.{MIXTURE}.gate.e_score_correction_bias"),
    ("FFN^{(r)}_i", "routed expert: gate (in the library above up, and all experts in one)",
     f"{MIXTURE}.experts.gate_up_proj", f"model.{MIXTURE}.experts.0.gate_proj.weight"),
    ("FFN^{(r)}_i", "routed expert: down (all experts in one)", f"{MIXTURE}.experts.down_proj",
     f"model.{MIXTURE}.experts.0.down_proj.weight"),
    ("FFN^{(s)}", "shared expert: gate", f"{MIXTURE}.shared_experts.gate_proj",
     f"model.{MIXTURE}.shared_experts.gate_proj.weight"),
    ("M_k", "joins hidden state and embedding, for MTP", "mtp.0.eh_proj", "model.layers.61.eh_proj.weight"),
    ("OutHead", "output head", "lm_head", "lm_head.weight"),
)  # fmt: skip


class Notation:
    """The table, with the shapes of V3's tensors, for a notebook to show."""

    def __init__(self):
        # Four layers have one of everything. Only the MTP module, the last layer, has another number than in V3.
        v3, layers = ModelConfig.preset("deepseek-v3"), 4
        with torch.device("meta"):
            released = released_tensors(DeepSeek(replace(v3, num_hidden_layers=layers)))
        self.rows = []
        for symbol, what, code, name in ROWS:
            here = name.replace(f"layers.{v3.num_hidden_layers}.", f"layers.{layers}.")
            self.rows.append((symbol, what, code, name, tuple(released[here].shape)))

    def __repr__(self) -> str:
        return "\n".join(f"{symbol}: {what}; {code}; {name}; {shape}" for symbol, what, code, name, shape in self.rows)

    def _repr_markdown_(self) -> str:
        head = "| in the paper | what it is | in the library | in the released file | shape in V3 |\n"
        return f"{head}|---|---|---|---|---|\n" + "\n".join(
            f"| ${symbol}$ | {escape(what)} | `{code}` | `{name}` | {' × '.join(f'{n:,}' for n in shape)} |"
            for symbol, what, code, name, shape in self.rows
        )


def notation() -> Notation:
    """Return the table of names."""
    return Notation()
