"""The published models, with the sizes that reproduce their published parameter counts, and the miniatures.

Each preset is a dict of ModelConfig's fields (config.py); other fields have their defaults.
"""

_TOKENS_LLM = dict(vocab_size=102400, bos_token_id=100000, eos_token_id=100001)
_MLA = dict(kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
_LONG = dict(factor=40, original_max_position_embeddings=4096)
_V3_LONG = dict(**_LONG, mscale=1.0, mscale_all_dim=1.0)
_V2_LONG = dict(max_position_embeddings=163840, rope_scaling=dict(**_LONG, mscale=0.707, mscale_all_dim=0.707))
_GATE_V1 = dict(scoring_func="softmax", topk_method="greedy", norm_topk_prob=False)
_MINI = dict(
    vocab_size=2048, hidden_size=192, num_hidden_layers=4, initializer_range=0.04, embedding_initializer_range=1.0,
    eos_token_id=0, num_attention_heads=4, q_lora_rank=96, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16,
    v_head_dim=32, num_nextn_predict_layers=1,
)  # fmt: skip

PRESETS = {
    "deepseek-llm-7b": dict(
        **_TOKENS_LLM, hidden_size=4096, num_hidden_layers=30, intermediate_size=11008,
        num_attention_heads=32, num_key_value_heads=32,
    ),
    "deepseek-llm-67b": dict(
        **_TOKENS_LLM, hidden_size=8192, num_hidden_layers=95, intermediate_size=22016,
        num_attention_heads=64, num_key_value_heads=8,
    ),
    "deepseek-moe-16b": dict(
        **_TOKENS_LLM, **_GATE_V1, hidden_size=2048, num_hidden_layers=28, intermediate_size=10944,
        num_attention_heads=16, first_k_dense_replace=1, moe_intermediate_size=1408,
        n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6,
    ),
    "deepseek-v2-lite": dict(
        **_TOKENS_LLM, **_GATE_V1, **_MLA, **_V2_LONG, hidden_size=2048, num_hidden_layers=27,
        intermediate_size=10944, num_attention_heads=16, first_k_dense_replace=1,
        moe_intermediate_size=1408, n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6,
    ),
    "deepseek-v2": dict(
        **_TOKENS_LLM, **_MLA, **_V2_LONG, hidden_size=5120, num_hidden_layers=60, intermediate_size=12288,
        num_attention_heads=128, q_lora_rank=1536, first_k_dense_replace=1, moe_intermediate_size=1536,
        n_routed_experts=160, n_shared_experts=2, num_experts_per_tok=6, n_group=8, topk_group=3,
        routed_scaling_factor=16.0, scoring_func="softmax", topk_method="group_limited_greedy",
        norm_topk_prob=False,
    ),
    "deepseek-v3": dict(
        **_MLA, vocab_size=129280, hidden_size=7168, num_hidden_layers=61, intermediate_size=18432,
        max_position_embeddings=163840, rope_scaling=_V3_LONG, num_attention_heads=128, q_lora_rank=1536,
        first_k_dense_replace=3, moe_intermediate_size=2048, n_routed_experts=256,
        n_shared_experts=1, num_experts_per_tok=8, n_group=8, topk_group=4, routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
    ),
    # For tests: all components, and eight layers, enough for 4 pipeline ranks x 2 stages.
    "tiny": dict(
        vocab_size=512, hidden_size=64, num_hidden_layers=8, intermediate_size=128, initializer_range=0.02,
        max_position_embeddings=512, eos_token_id=0,
        num_attention_heads=4, q_lora_rank=32, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8,
        v_head_dim=16, first_k_dense_replace=1, moe_intermediate_size=32, n_routed_experts=8,
        n_shared_experts=1, num_experts_per_tok=2, n_group=4, topk_group=2, routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
    ),
    # The book's model: DeepSeek-V3's architecture, small enough to train on a laptop in minutes.
    "mini": dict(
        **_MINI, intermediate_size=512, first_k_dense_replace=1, moe_intermediate_size=64,
        n_routed_experts=24, n_shared_experts=1, num_experts_per_tok=4, n_group=4, topk_group=2,
        routed_scaling_factor=2.5,
    ),
    # The same with dense feed-forward layers, as wide as the average of mini's active ones.
    "mini-dense": dict(**_MINI, intermediate_size=368, first_k_dense_replace=4),
}  # fmt: skip
ALIASES = {"deepseek-r1": "deepseek-v3"}
