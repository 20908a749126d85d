"""Hugging Face transformers as the oracle: the same configuration and the same weights, in its classes."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import torch
import transformers
from configurations import randomize
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_layers import MtpModel
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.model.moe import Gate

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

CONFIGS = {"llama": LlamaConfig, "deepseek_v2": DeepseekV2Config, "deepseek_v3": DeepseekV3Config}
MODELS = {"llama": LlamaForCausalLM, "deepseek_v2": DeepseekV2ForCausalLM, "deepseek_v3": DeepseekV3ForCausalLM}


class DeepseekConfig(LlamaConfig):
    """DeepSeekMoE-16B's family, which transformers does not have."""

    model_type = "deepseek"
    attribute_map: ClassVar = {"num_experts": "n_routed_experts"}
    routed_scaling_factor: float = 1.0
    n_group: int | None = None
    topk_group: int | None = None


class DeepseekForCausalLM(LlamaForCausalLM):
    """Llama with V2's mixture of experts: every part is transformers' own."""

    config_class = DeepseekConfig

    def __init__(self, config: DeepseekConfig):
        super().__init__(config)
        for i, layer in enumerate(self.model.layers):
            if i >= config.first_k_dense_replace and i % config.moe_layer_freq == 0:
                layer.mlp = DeepseekV2Moe(config)


AutoConfig.register("deepseek", DeepseekConfig)
AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM)
register_checkpoint_conversion_mapping("deepseek", get_checkpoint_conversion_mapping("qwen2_moe"))


# ---------------------------------------------------------------------------------------------------
# In memory


def hf_config(config: ModelConfig) -> PreTrainedConfig:
    entries = config.to_hf()
    twin = CONFIGS[entries.pop("model_type")](**entries)
    twin._attn_implementation = twin._experts_implementation = "eager"
    return twin


def hf_name(name: str) -> str:
    """The name in transformers of a tensor of the main model."""
    name = name.replace("gate.expert_bias", "gate.e_score_correction_bias")
    return name if name.startswith("lm_head.") else f"model.{name}"


def hf_mtp_name(name: str) -> str:
    """The name in transformers' MtpModel of a tensor of the MTP modules, `mtp.` taken off."""
    name = hf_name(name).removeprefix("model.").replace(".block.", ".mtp_block.")
    return "layers." + re.sub(r"^(\d+)\.norm\.", r"\1.post_norm.", name)


def hf_state(model: DeepSeek) -> dict[str, Tensor]:
    """The main model's weights under transformers' names; MTP modules are left out."""
    return {hf_name(name): tensor for name, tensor in model.state_dict().items() if not name.startswith("mtp.")}


def hf_twin(model: DeepSeek) -> PreTrainedModel:
    """The transformers model of the same family with the same weights, every one of them."""
    twin = MODELS[model.config.model_type](hf_config(model.config)).eval()
    twin.load_state_dict(hf_state(model), strict=True)
    return twin


# ---------------------------------------------------------------------------------------------------
# On disk


def load_twin(folder: Path) -> PreTrainedModel:
    """What transformers reads from a folder, MTP modules apart: all that is in it and nothing else."""
    twin, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    mtp_layers = mtp_layer_names(twin.config)
    report["unexpected_keys"] = {name for name in report["unexpected_keys"] if not name.startswith(mtp_layers)}
    assert not any(report.values()), report
    return twin


def load_mtp(twin: PreTrainedModel) -> MtpModel | None:
    """The MTP modules in the folder that a model came from, if it has any."""
    layers = mtp_layer_names(twin.config)
    # By this list transformers finds them, and on the class are the layers of released models, 61 for V3.
    twin._keys_to_ignore_on_load_unexpected = list(layers)
    return MtpModel.from_pretrained(twin).eval() if layers else None


def mtp_layer_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """What the released names of each MTP module begin with."""
    modules = getattr(config, "num_nextn_predict_layers", 0)
    return tuple(f"model.layers.{config.num_hidden_layers + k}." for k in range(modules))


def random_twin(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    twin = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    return randomize_twin(twin, seed)


def randomize_twin(twin: PreTrainedModel, seed: int) -> PreTrainedModel:
    """As `randomize`; where the bias is below -1, the sigmoid plus bias by which experts are chosen is negative."""
    randomize(twin, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in twin.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(-1.4, -1.0, generator=generator)
    return twin.eval()


def add_mtp_modules(folder: Path, main: PreTrainedModel, mtp: MtpModel) -> None:
    """Write an MtpModel, which transformers cannot save, beside its main model as DeepSeek released V3."""
    tensors = load_file(folder / "model.safetensors")
    embedding, head = main.get_input_embeddings().weight, main.lm_head.weight
    for name, tensor in mtp.state_dict().items():
        if not (layer := re.fullmatch(r"layers\.(\d+)\.(.*)", name)):
            continue  # the main model's embedding and head
        part = layer[2].removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
        prefix = f"model.layers.{main.config.num_hidden_layers + int(layer[1])}."
        tensors |= {f"{prefix}embed_tokens.weight": embedding, f"{prefix}shared_head.head.weight": head}
        if part == "mlp.experts.gate_up_proj":
            for i, one in enumerate(tensor):
                gate, up = one[: len(one) // 2], one[len(one) // 2 :]
                tensors[f"{prefix}mlp.experts.{i}.gate_proj.weight"] = gate
                tensors[f"{prefix}mlp.experts.{i}.up_proj.weight"] = up
        elif part == "mlp.experts.down_proj":
            tensors |= {f"{prefix}mlp.experts.{i}.down_proj.weight": one for i, one in enumerate(tensor)}
        else:
            tensors[prefix + part] = tensor
    save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")


# ---------------------------------------------------------------------------------------------------
# Side by side


def record_gates(model: DeepSeek) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return a list to which every later pass through a gate appends its (weights, experts, scores)."""
    return _record(model.gates)


def record_hf_gates(*models: PreTrainedModel) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The same of transformers' gates, which give (logits, weights, experts)."""
    return _record(gate for model in models for name, gate in model.named_modules() if name.endswith("mlp.gate"))


def _record(gates: Iterable[nn.Module]) -> list:
    records = []
    for gate in gates:
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
