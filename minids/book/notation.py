"""Two tables of names: of weights, and of activations, in the report, in this book, in the library, with shapes in V3.

The weights of layer 3, the first with a mixture, and of its first expert stand for all. Shapes are read off V3 itself.
"""

from dataclasses import replace
from html import escape

import torch

from minids.hub.names import released_tensors
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek

LAYER = "layers.3"
ATTENTION, MIXTURE = f"{LAYER}.self_attn", f"{LAYER}.mlp"
ROWS = (  # the report's symbol, its meaning, the module in the library, the tensor in the released file
    (r"\text{Emb}", "embedding", "embed_tokens", "model.embed_tokens.weight"),
    ("W^{DQ}", "projects down to the latent of the queries", f"{ATTENTION}.q_a_proj",
     f"model.{ATTENTION}.q_a_proj.weight"),
    ("[W^{UQ}; W^{QR}]", "projects up to the queries, without and with position", f"{ATTENTION}.q_b_proj",
     f"model.{ATTENTION}.q_b_proj.weight"),
    ("[W^{DKV}; W^{KR}]", "projects down to what is cached: the latent, and the key with position",
     f"{ATTENTION}.kv_a_proj_with_mqa", f"model.{ATTENTION}.kv_a_proj_with_mqa.weight"),
    ("[W^{UK}; W^{UV}]", "projects up to keys and values", f"{ATTENTION}.kv_b_proj",
     f"model.{ATTENTION}.kv_b_proj.weight"),
    ("W^{O}", "output projection of attention", f"{ATTENTION}.o_proj", f"model.{ATTENTION}.o_proj.weight"),
    ("e_i", "router: one vector per expert; the sigmoid of its scalar product with a token is the score",
     f"{MIXTURE}.gate", f"model.{MIXTURE}.gate.weight"),
    ("b_i", "router: bias that balances the load", f"{MIXTURE}.gate.expert_bias",
     f"model.{MIXTURE}.gate.e_score_correction_bias"),
    (r"\text{FFN}^{(r)}_i", "routed expert: gate (in the library one tensor with up, for all experts)",
     f"{MIXTURE}.experts.gate_up_proj", f"model.{MIXTURE}.experts.0.gate_proj.weight"),
    (r"\text{FFN}^{(r)}_i", "routed expert: down (in the library one tensor for all experts)",
     f"{MIXTURE}.experts.down_proj", f"model.{MIXTURE}.experts.0.down_proj.weight"),
    (r"\text{FFN}^{(s)}", "shared expert: gate", f"{MIXTURE}.shared_experts.gate_proj",
     f"model.{MIXTURE}.shared_experts.gate_proj.weight"),
    ("M_k", "joins hidden state and embedding for multi-token prediction", "mtp.0.eh_proj",
     "model.layers.61.eh_proj.weight"),
    (r"\text{OutHead}", "output head", "lm_head", "lm_head.weight"),
)  # fmt: skip
ACTIVATIONS = (  # in the report, in this book, its meaning, in the library, its shape for one token
    ("–", "x", "residual stream", "x_BTD", "hidden_size"),
    ("h_t", "h", "input of attention; of experts, too, where the report writes $u_t$: the residual stream, normalised",
     "x_BTD", "hidden_size"),
    ("c_t^{Q}", r"c_{\text{q}}", "latent of the queries, normalised", "c_q", "q_lora_rank"),
    ("q_t^{C}", r"q_{\text{nope}}", "queries without positional encoding (*nope*)", "q_nope",
     "num_attention_heads qk_nope_head_dim"),
    ("q_t^{R}", r"q_{\text{rope}}", "queries with position, rotated", "q_rope", "num_attention_heads qk_rope_head_dim"),
    ("c_t^{KV}", r"c_{\text{kv}}", "latent of keys and values, normalised; **cached**", "c_kv", "kv_lora_rank"),
    ("k_t^{R}", r"k_{\text{rope}}", "key with position, rotated, shared by all heads; **cached**", "k_rope",
     "qk_rope_head_dim"),
    ("k_t^{C}", r"k_{\text{nope}}", "keys without positional encoding", "k_nope",
     "num_attention_heads qk_nope_head_dim"),
    ("v_t^{C}", "v", "values", "v", "num_attention_heads v_head_dim"),
    ("o_t", "o", "outputs of the heads", "o", "num_attention_heads v_head_dim"),
    ("u_t", r"\text{out}", "output of attention, after $W^O$", "MLA.forward(…)", "hidden_size"),
    ("s_{i,t}", "s", "scores of all experts", "scores_NE", "n_routed_experts"),
    ("g_{i,t}", "g", "weights of the chosen experts", "weights_NK", "num_experts_per_tok"),
)  # fmt: skip


class Notation:
    """Both tables, for a notebook to show."""

    def __init__(self):
        # Four layers have one of everything. Only the MTP module, the last layer, has another number than in V3.
        v3, layers = ModelConfig.preset("deepseek-v3"), 4
        with torch.device("meta"):
            released = released_tensors(DeepSeek(replace(v3, num_hidden_layers=layers)))
        self.rows = []
        for symbol, what, code, name in ROWS:
            here = name.replace(f"layers.{v3.num_hidden_layers}.", f"layers.{layers}.")
            self.rows.append((symbol, what, code, name, tuple(released[here].shape)))
        self.activations = [(*row, shape_in(v3, widths)) for *row, widths in ACTIVATIONS]

    def __repr__(self) -> str:
        return "\n".join("; ".join(map(str, row)) for row in [*self.activations, *self.rows])

    def _repr_markdown_(self) -> str:
        return "\n".join([
            "| in the report | in this book | what it is | in the library | shape in V3, for one token |",
            "|---|---|---|---|---|",
            *(
                f"| {report if report == '–' else f'${report}$'} | ${here}$ | {what} | `{code}` | {_shape(shape)} |"
                for report, here, what, code, shape in self.activations
            ),
            "",
            "| weight | what it is | in the library | in the released file | shape in V3 |",
            "|---|---|---|---|---|",
            *(
                f"| ${symbol}$ | {escape(what)} | `{code}` | `{name}` | {_shape(shape)} |"
                for symbol, what, code, name, shape in self.rows
            ),
        ])  # fmt: skip


def shape_in(config: ModelConfig, widths: str) -> tuple[int, ...]:
    """Return an activation's shape for one token, from the names of its widths in a configuration."""
    return tuple(getattr(config, width) for width in widths.split())


def _shape(widths: tuple[int, ...]) -> str:
    return " × ".join(f"{width:,}" for width in widths)


def notation() -> Notation:
    """Return the two tables of names."""
    return Notation()
