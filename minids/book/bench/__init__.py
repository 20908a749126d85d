"""Speed and memory, measured beside a peer: Hugging Face's DeepseekV3 with the same configuration and the same weights.

    make bench                  everything, some fifteen minutes; let nothing else run meanwhile
    make bench ARGS=--quick     the main figures, under two minutes

An absolute time says more about the machine than about the code, so what counts is a ratio: both sides run
in one process, in turn, and each round gives one ratio. `measure` tells how; `peer` makes the two sides and
first of all compares their logits; `training`, `decoding`, `experts` and `growth` are what is measured.

The peer runs in the fastest of its settings that we know, and beside it as it comes.
"""
