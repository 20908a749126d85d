"""Speed and memory, measured beside a peer: Hugging Face's DeepseekV3 with the same configuration and the same weights.

    make bench                  everything, some fifteen minutes; let nothing else run meanwhile
    make bench ARGS=--quick     the main figures, under two minutes

An absolute time depends more on the machine than on the code, so the results are ratios: both sides run in one
process, in turn, and each round gives one ratio. `measure` takes the times; `peer` makes the two sides and first
compares their logits; `training`, `decoding`, `speculation`, `experts`, `fp8` and `growth` are measured. (`fp8` has no
peer: simulated FP8 is measured beside float32.)

The peer runs in the fastest of its settings that we know and, for comparison, in its default setting.
"""
