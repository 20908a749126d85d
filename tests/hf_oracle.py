"""Hugging Face transformers as the oracle: the same configuration and the same weights, in its classes."""

from torch import Tensor
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from minids.config import ModelConfig
from minids.model import DeepSeek
from minids.moe import Gate

CONFIGS = {"llama": LlamaConfig, "deepseek_v2": DeepseekV2Config, "deepseek_v3": DeepseekV3Config}
MODELS = {"llama": LlamaForCausalLM, "deepseek_v2": DeepseekV2ForCausalLM, "deepseek_v3": DeepseekV3ForCausalLM}


def hf_config(config: ModelConfig) -> PreTrainedConfig:
    entries = config.to_hf()
    twin = CONFIGS[entries.pop("model_type")](**entries)
    twin._attn_implementation = twin._experts_implementation = "eager"
    return twin


def hf_name(name: str) -> str:
    """The name in transformers of a tensor of the main model."""
    name = name.replace("gate.expert_bias", "gate.e_score_correction_bias")
    return name if name.startswith("lm_head.") else f"model.{name}"


def hf_state(model: DeepSeek) -> dict[str, Tensor]:
    """The main model's weights under transformers' names; MTP modules are left out."""
    return {hf_name(name): tensor for name, tensor in model.state_dict().items() if not name.startswith("mtp.")}


def hf_twin(model: DeepSeek) -> PreTrainedModel:
    """The transformers model of the same family with the same weights, every one of them."""
    twin = MODELS[model.config.model_type](hf_config(model.config)).eval()
    twin.load_state_dict(hf_state(model), strict=True)
    return twin


def record_gates(model: DeepSeek) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return a list to which every later pass through a gate appends its (weights, experts, scores)."""
    records = []
    for gate in model.gates:
        gate.register_forward_hook(lambda module, args, out: records.append(out))
    return records


def closest_call(gate: Gate, scores_NE: Tensor) -> float:
    """The smallest lead by which a group or an expert was chosen over another: rounding may not bridge it."""
    c = gate.config
    biased = scores_NE if gate.expert_bias is None else scores_NE + gate.expert_bias
    lead = float("inf")
    if c.topk_method != "greedy" and c.n_group > 1:
        grouped = biased.unflatten(1, (c.n_group, -1))
        best = 2 if c.topk_method == "noaux_tc" else 1
        ranked, order = grouped.topk(best, dim=-1).values.sum(dim=-1).sort(dim=-1, descending=True)
        if c.topk_group < c.n_group:
            lead = (ranked[:, c.topk_group - 1] - ranked[:, c.topk_group]).min().item()
        kept = order[:, : c.topk_group, None].expand(-1, -1, grouped.shape[2])
        biased = grouped.gather(1, kept).flatten(1)
    if c.num_experts_per_tok < biased.shape[1]:
        ranked = biased.sort(dim=-1, descending=True).values
        lead = min(lead, (ranked[:, c.num_experts_per_tok - 1] - ranked[:, c.num_experts_per_tok]).min().item())
    return lead
