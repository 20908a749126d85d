"""The model: every component of DeepSeek-V3, one idea per file, from the configuration to the whole model.

**Shape suffixes.** A tensor's name ends in one letter per dimension: `scores_NE` has a row for each token and a column
for each expert. A letter has the same meaning in the whole library:

       dimension                                         name, or key of the configuration
    B  sequences in a batch
    T  positions of the queries
    S  positions of the keys, cached and new
    N  tokens, B · T
    D  width of the residual stream                      hidden_size
    V  vocabulary                                        vocab_size
    X, Y  any two widths

    H  query heads                                       num_attention_heads
    G  key-value heads                                   num_key_value_heads (MLA absorbed: 1)
    Q  query heads per key-value head, H / G
    J  batch and key-value head, B · G
    C  width of a query or key head                      head_dim (MLA: M + P; absorbed: W)
    A  width of a value head                             head_dim (MLA: d_v, v_head_dim; absorbed: L)
    W  cached numbers per position                       2 · G · head_dim (MLA: L + P)
    L  width of the latent, in MLA                       d_latent, kv_lora_rank
    M  width of a head without position, in MLA          d_nope, qk_nope_head_dim
    P  width of the rotated part, in MLA                 d_rope, qk_rope_head_dim

    E  routed experts                                    n_routed_experts
    K  experts chosen per token                          num_experts_per_tok
    I  width of an expert                                moe_intermediate_size
    R  rows of the experts' input: one for each choice of each token, sorted by expert (and padding)

A lower-case letter is a part of that dimension: t of the T positions. (einops patterns such as "b t (h c)" are always
in lower case.)
"""
