"""The model: every component of DeepSeek-V3, from its configuration to the whole, one idea per file.

**Shapes are in the names.** A tensor's name ends in one letter per dimension: `scores_NE` has a row for each token and
a column for each expert. The letters mean the same in the whole library:

    B  sequences of a batch         H  query heads                      E  routed experts
    T  positions, of the queries    G  key-value heads                  K  experts chosen for a token
    S  positions attended to        Q  query heads that share a         I  width of an expert
    N  tokens, B times T               key-value head, H / G            R  rows: every choice of every token,
    D  width of the hidden state    J  batch and key-value head, B G       sorted by expert
    V  vocabulary                   C  width of a query or a key
    X, Y  any two widths            A  width of a value

    and in MLA   L  width of the latent      M  width of a head's part without position (nope)
                 P  width of the part that carries position (rope)     W  width of what is cached, L + P

A lower-case letter is a piece of that dimension: t of the T positions. (einops patterns, such as "b t (h c)", are
lower case throughout.)
"""
