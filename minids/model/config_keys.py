"""Keys of config.json that are no field of ModelConfig: those in DeepSeek's and Llama's files, and transformers' own.

Switches must have the one value that this library implements. The other keys do not affect what a trained model
computes: bookkeeping, training, serving. Any further key is an error (config_json.py).
"""

SWITCHES = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_interleave": True, "qk_layernorm": False,
    "qk_latent_layernorm": False, "partial_rotary_factor": 1.0, "use_sliding_window": False, "pruned_heads": {},
}  # fmt: skip
ROPE_SWITCHES = {"attention_factor": None, "truncate": True, "partial_rotary_factor": 1.0}  # within rope_scaling

BOOKKEEPING = (
    "add_cross_attention", "architectures", "auto_map", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "decoder_start_token_id", "dtype", "finetuning_task", "id2label", "is_decoder", "is_encoder_decoder", "label2id",
    "model_type", "name_or_path", "num_labels", "output_attentions", "output_hidden_states", "output_router_logits",
    "pad_token_id", "prefix", "problem_type", "qk_head_dim", "quantization_config", "return_dict", "sep_token_id",
    "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers_version", "unsloth_fixed", "unsloth_version", "use_bfloat16",
)  # fmt: skip
TRAINING = (
    "attention_dropout", "aux_loss_alpha", "ep_size", "gradient_checkpointing", "pretraining_tp",
    "router_aux_loss_coef", "seq_aux",
)  # fmt: skip
GENERATION = (  # older versions of transformers wrote these here, newer ones into generation_config.json
    "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens",
    "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
    "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "target_lookbehind",
    "temperature", "top_k", "top_p", "typical_p", "use_cache",
)  # fmt: skip
NEUTRAL = {*BOOKKEEPING, *TRAINING, *GENERATION}
