"""One decoding step over a filled cache, beside the peer's.

The peer caches latents too, but expands them to keys and values at every step; minids attends to them
absorbed (mla.py). Both sides run a bare loop of forward passes in float32, without sampling, which favours
the peer: its `generate` does more, and turns off gradients by no_grad, which is slower than the inference mode used
here. After each step the caches are cut back, so that the context keeps its length.

`verify` is a step of two tokens, as in speculative decoding: its extra cost over a plain step is the cost of
verifying one drafted token.
"""

import torch

from minids.book.bench.measure import alternate, ratio, summary
from minids.book.bench.peer import (
    AS_IT_COMES,
    CONFIGS,
    FASTEST,
    OURS,
    SETTINGS,
    fastest,
    make_ours,
    make_peer,
    set_peer,
)

VERIFY = "minids, two tokens"


@torch.inference_mode()
def measure(name: str, cells: list[tuple[int, int]], threads: list[int], rounds: int) -> list[dict]:
    """Return a row for each (batch, context) and number of threads."""
    config = CONFIGS[name]
    ours = make_ours(config)
    peers = {setting: make_peer(ours, setting) for setting in SETTINGS}
    rows = []
    for batch, context in cells:
        tokens_BT = torch.randint(config.vocab_size, (batch, context))
        for count in threads:
            torch.set_num_threads(count)
            best, tried = fastest(lambda setting, tokens_BT=tokens_BT: PeerStep(peers[setting], tokens_BT), SETTINGS)
            steps = {
                OURS: OurStep(ours, tokens_BT),
                FASTEST: PeerStep(peers[best], tokens_BT),
                VERIFY: OurStep(ours, tokens_BT, new=2),
            }
            same = torch.isclose(steps[OURS](), steps[FASTEST](), rtol=1e-4, atol=1e-4).all(dim=-1)
            assert same.float().mean() > 0.8, "the logits differ"  # of a row, where rounding decides on an expert
            samples = alternate(steps, rounds)
            rows.append({
                "config": name, "batch": batch, "context": context, "threads": count,
                "fastest": " ".join(best), "tried_ms": tried,
                "sides": {side: summary(taken) for side, taken in samples.items()},
                "speedup": ratio(samples[FASTEST], samples[OURS]),
                "verify": ratio(samples[VERIFY], samples[OURS]),
            })  # fmt: skip
    return rows


class _Step:
    """A step that takes new tokens at each call, the same for both sides."""

    def __init__(self, model, tokens_BT: torch.Tensor, new: int = 1):
        self.model, self.batch, self.new = model.eval(), len(tokens_BT), new
        self.generator = torch.Generator().manual_seed(0)

    def tokens(self) -> torch.Tensor:
        vocabulary = self.model.config.vocab_size
        return torch.randint(vocabulary, (self.batch, self.new), generator=self.generator)


class OurStep(_Step):
    """minids: returns the logits of the new tokens and cuts the cache back."""

    def __init__(self, model, tokens_BT: torch.Tensor, new: int = 1):
        super().__init__(model, tokens_BT, new)
        self.context = tokens_BT.shape[1]
        self.cache = model.new_cache(self.batch, self.context + new)
        model(tokens_BT, self.cache)

    def __call__(self) -> torch.Tensor:
        logits = self.model(self.tokens(), self.cache)
        for layer_cache in self.cache:
            layer_cache.length = self.context
        return logits


class PeerStep(_Step):
    """transformers: the same."""

    def __init__(self, model, tokens_BT: torch.Tensor):
        from transformers import DynamicCache

        super().__init__(model, tokens_BT)
        self.cache = DynamicCache(config=model.config)
        # Filled in the default setting: with a long prompt the others may need more memory than there is.
        setting = model.config._attn_implementation, model.config._experts_implementation
        set_peer(model, AS_IT_COMES)
        model(tokens_BT, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        set_peer(model, setting)

    def __call__(self) -> torch.Tensor:
        logits = self.model(self.tokens(), past_key_values=self.cache, use_cache=True).logits
        self.cache.crop(-self.new)
        return logits
