"""Every picture of the book, on data of all shapes, each drawn once: `picture("wall: 8")`."""

from dataclasses import asdict
from functools import cache

import numpy as np
import torch
from matplotlib.text import Text
from torch import Tensor

from minids.book import plots
from minids.book.ablation import Row, recorded_rows
from minids.book.claims import ARTICLES, all_claims
from minids.book.plots.c08_measured import simulated
from minids.book.plots.style import Picture
from minids.book.probes.drafts import Drafts
from minids.book.probes.expert_products import ROUTINGS, WAYS
from minids.book.probes.specialists import Observed
from minids.book.recorded import Measured, load
from minids.book.toy import KINDS
from minids.cost.attention import mla_cached_numbers
from minids.cost.published import LOSS_FREE, REPORTS
from minids.cost.traffic import WAYS as WAYS_TO_SEND
from minids.cost.traffic import traffic
from minids.hub.reference import reference
from minids.inference.generate import generate
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.parallel.layout import Layout
from minids.parallel.schedules import SCHEDULES
from minids.parallel.simulate import Times
from minids.quantization.products import use_fp8
from minids.training.config import MINIATURE, TrainConfig

DOMAINS = ("prose", "code", "arithmetic")
RELEASED = list(REPORTS)
PRESETS = {name: ModelConfig.preset(name) for name in (*RELEASED, "mini", "mini-dense")}
V3, LITE = PRESETS["deepseek-v3"], PRESETS["deepseek-v2-lite"]


def run(steps=60, held_out=(1.62, 1.21, 2.05), baseline=(2.31, 1.94, 2.63), domains=DOMAINS, trained=None, layers=4,
        experts=32, mtp=True, **changes):  # fmt: skip
    """Records and a report like those of a real run; MaxVio falls from 5 to about 0.2. `changes` are made in a record.

    Without layers the model is dense.
    """
    rng, falling = np.random.default_rng(0), np.exp(-9 * np.arange(steps) / steps)
    held_out, baseline = (dict(zip(domains, values, strict=False)) for values in (held_out, baseline))
    records = [
        {
            "step": step,
            "loss": 3.4 + 4 * falling[step],
            "next_token": 3 + 4 * falling[step],
            "mtp": 3.3 + 4 * falling[step] if mtp else 0.0,
            "bits_per_byte": {d: held_out[d] + 3 * falling[step] for d in trained or domains},
            "gradient_norm": 0.4 + 3 * falling[step] + rng.random() / 4,
            "max_violation": (0.2 + 5 * falling[step] + 0.05 * rng.random(layers)).tolist(),
            "load": rng.integers(50, 150, (layers, experts)).tolist(),
            "seconds": (step + 1) * 0.31,
            **changes,
        }
        for step in range(steps)
    ]
    together = {"all": 1.6} | ({"prose_and_code": 1.5} if len(domains) > 1 else {})
    bits = {"bits_per_byte": held_out | together, "baseline_bits_per_byte": baseline | together}
    return records, {"train": asdict(TrainConfig(steps=steps)), "mtp_agreement": 0.64 if mtp else None} | bits


def part(steps: int, of: int, **changes):
    """Records of the first steps of a run, no report, and the run's configuration."""
    return run(of, **changes)[0][:steps], None, TrainConfig(steps=of)


def sick():
    """Records with every defect at once, and the configuration."""
    records, _ = run(200, layers=2)
    for record in records[100:]:
        record["load"][1][7] = 0
        record |= {"next_token": record["next_token"] + 1, "mtp": 0.4, "gradient_norm": 30.0}
    for i, record in enumerate(records[150:]):
        record["seconds"] += 2 * i
    return records, None, TrainConfig(steps=1000)


def observed(rows=8) -> Observed:
    """Held-out text and experts as a model with the sizes of mini might choose them, drawn at random."""
    rng = np.random.default_rng(0)
    spelled = ["", "\n", *"+-=0123456789", " the", " of", ")", "\n       ", "  ", "a$b$", "identification", "é"]
    tokens = rng.integers(len(spelled), size=(3 * rows, 256))
    experts = (rng.random((3, 3 * rows, 256, 24)) + 0.5 * rng.random((3, 1, 1, 24))).argsort(-1)[..., :4]
    return Observed(PRESETS["mini"], spelled, list(DOMAINS), tokens, experts, rng.random(experts.shape))


def balance(times: float = 1) -> dict:
    """The recorded results of the balance experiment, with differences in bits per byte so many times as large."""
    result = load("balance")
    for run in result["runs"]:
        run["bits_per_byte"] = {name: 2 + times * (bits - 2) for name, bits in run["bits_per_byte"].items()}
    return result


def products(padded: float) -> list[dict]:
    """Times of the ways to run experts; padding takes so many times as long where the load is skewed."""

    def times(n: int, i: int, way: str, routing: str) -> list[float]:
        factor = padded if (way, routing) == ("padded", "skewed") else 1 + i / 9
        return [n**0.1 * factor + j / 50 for j in range(3)]

    return [
        {
            "experts": n, "routing": routing, "busiest": 1.5,
            "milliseconds": {way: times(n, i, way, routing) for i, way in enumerate(WAYS)},
        }
        for routing in ROUTINGS for n in (8, 32, 256)
    ]  # fmt: skip


def curves(power: float) -> list[dict]:
    """The recorded curves of growth, with every time multiplied by a power of what changes."""
    growth = load("bench")["growth"]
    for point in (point for curve in growth for point in curve["points"]):
        point["time"]["median_ms"] *= point["value"] ** power
        point["predicted_ms"] *= point["value"] ** power
    return growth


def experiment(times: float) -> dict:
    """The recorded results of the attention experiment, with differences in bits per byte so many times as large."""
    result = load("attention")
    for row in result["runs"]:
        for bits in (row["report"]["bits_per_byte"], row.get("measured", {}).get("bits_per_byte", {})):
            bits |= {name: 1.8 + times * (value - 1.8) for name, value in bits.items()}
    return result


def decoding(*last: float):
    """Times that grow with the context up to `last`, for each way, and the bytes of V2-Lite's caches."""
    contexts, ways = [256, 512, 1024, 2048, 4096, 8192], ("full cache", "expanded", "absorbed")
    times = {
        way: [[end * c / 8192 * x for x in (0.9, 1, 1.3)] for c in contexts]
        for way, end in zip(ways, last, strict=True)
    }
    return contexts, times, {way: 4 * mla_cached_numbers(LITE)[way] for way in ("full cache", "absorbed")}


def crossing(faster: float) -> dict[int, np.ndarray]:
    """Ratios of times by number of new tokens, with a spread."""
    return {n: faster * r * np.array([0.8, 1, 1.1]) for n, r in {1: 100, 16: 7, 64: 2, 128: 1.1, 512: 0.5}.items()}


def scores(heads: int, tokens: int):
    parts = np.random.default_rng(2).normal(size=(2, heads, tokens, tokens))
    return *parts, [f"layer {i}\nhead 0" for i in range(heads)], list("abcdefgh")[:tokens], "What some heads look at"


def overlaps():
    """1 - TV of drafts, and whether each was accepted."""
    dice = torch.Generator().manual_seed(0)
    computed = torch.rand(3000, generator=dice)
    return computed, torch.rand(3000, generator=dice) < computed


def accepted(*names: str):
    """Drafts at temperature 1 and greedy ones, drawn at random."""
    dice = torch.Generator().manual_seed(0)

    def found() -> Drafts:
        acceptance, entropy = torch.rand(2, 16, 60, generator=dice)
        return Drafts(acceptance, 9 * entropy)

    return tuple({name: found() for name in names} for _ in range(2))


def drafted(prompt: str, temperature: float):
    """What the miniature writes by speculative decoding, and its tokenizer."""
    model, tokenizer = reference().model, reference().tokenizer
    return generate(model, tokenizer.encode(prompt), 60, temperature=temperature, speculative=True), tokenizer


def magnitudes() -> dict[str, Tensor]:
    """A few thousand numbers of each of three kinds, of the sizes that they have in a model."""
    dice = torch.Generator().manual_seed(0)
    sizes = {"weights W": 0.05, "activations x": 1.0, "gradients dy": 1e-5}
    return {kind: size * torch.randn(50, 200, generator=dice) for kind, size in sizes.items()}


def in_fp8() -> DeepSeek:
    model = DeepSeek(ModelConfig.preset("tiny"))
    use_fp8(model)
    return model


def register_errors() -> dict:
    """Errors of sums of 1,024, 4,096 and 16,384 products: median and largest, by data, what is cut and promotion."""
    names = {"never": 1e-3, "512": 3e-4, "128": 8e-5, "32": 3e-5, "FP32": 1e-7, "operands": 0.026, "nearest": 1e-4}
    found = {name: [(size * grown, 5 * size * grown) for grown in (1, 2, 4)] for name, size in names.items()}
    return {data: dict.fromkeys(("sums", "products"), found) for data in ("normal", "positive")}


def of_a_reader(*bits: float) -> Row:
    """A change that a reader trained, with these bits per byte in its runs."""
    full = recorded_rows()[0]
    return Row("eight heads", full.model, Measured(bits), Measured((2.2, 2.3)[: len(bits)]), 0.5, 0.6, recorded=False)


def scaling(shift: float) -> dict:
    """The recorded results of the scaling experiment, with the mixture's bits per byte shifted."""
    result = load("scaling")
    for run in result["runs"]:
        run["bits_per_byte"]["prose_and_code"] += shift * run["arm"].startswith("MoE")
    return result


def mixed() -> dict:
    """The same with mixtures that differ from the dense models by 0.1 exactly: below at two sizes, above at two."""
    result = load("scaling")
    dense = {(run["arm"][-2:], run["data"]): run for run in result["runs"] if run["arm"].startswith("dense")}
    for run in result["runs"]:
        if run["arm"].startswith("MoE"):
            bits = dense[run["arm"][-2:], run["data"]]["bits_per_byte"]["prose_and_code"]
            run["bits_per_byte"]["prose_and_code"] = bits + (0.1 if run["arm"][-1] in "SM" else -0.1)
    return result


def executed(name: str, ranks: int, micro_batches: int, slower: float) -> tuple:
    """A schedule, and the timeline of a run in which every action took so many times as long as its pace."""
    schedule, pace = SCHEDULES[name](ranks, micro_batches), Times(F=0.04, I=0.03, W=0.05)
    times = Times(*(slower * duration for duration in (pace.F, pace.I, pace.W)))
    return name, schedule, simulated(schedule, times), pace


def chosen(ranks: int, experts: int, tokens: int, k: int) -> list[Tensor]:
    """Experts of each rank's tokens, some of them chosen more often."""
    dice = torch.Generator().manual_seed(0)
    favour = 0.5 * torch.randn(experts, generator=dice)
    return [(torch.randn(tokens, experts, generator=dice) + favour).topk(k).indices for _ in range(ranks)]


def matrices(ranks: int, per_node: int, k: int, *ways: str) -> tuple[dict[str, np.ndarray], int]:
    """Rows between ranks, in the ways given or in all, and the ranks of a node."""
    choices = chosen(ranks, 4 * ranks, 64, k)
    return {way: traffic(choices, 4 * ranks, per_node, way).sum(axis=0) for way in ways or WAYS_TO_SEND}, per_node


GRIDS = ((8, 2, 2), (4, 1, 2), (8, 1, 8), (6, 3, 1), (32, 4, 4), (1, 1, 1), (8, 8, 1))  # ranks, pp, ep
KEPT = {  # of weights and moments, by rank; with two steps of the tiny preset with two layers
    **{name: ([62_292] * 4, [124_601] * 4) for name in ("dp=4", "dp=4, ep=4")},
    "pp=2, dp=2": ([70_320, 70_320, 211_568, 211_568], [102_760, 37_893, 178_801, 178_803]),
    "pp=2, dp=2, ep=2": ([70_320, 70_320, 162_416, 162_416], [102_760, 37_893, 178_800, 178_808]),
}

ARGUMENTS = {  # of draw_NAME, by name and variant
    "architecture": {"all": (), "3": (3,), "12": (12,)},
    "parameters": {f"{n}, {price}": (c, price) for n, c in PRESETS.items() for price in (None, 2.0)},
    "hours": {"V3": (REPORTS["deepseek-v3"],)},
    "models": {"released": (RELEASED,)},
    "conventions": {"MoE": (RELEASED[2:],)},
    "claims": {"all": (all_claims(), ARTICLES)},
    "rope": {str(shift): (PRESETS["deepseek-llm-7b"], (3, 1), shift) for shift in (0, 1, 4, 19, 33, 60)},
    "attention": {"even": (np.tril(np.full((4, 4), 0.25)), list("abcd"), "Words look at words before them")},
    "caches": {"dense": (["deepseek-llm-7b", "deepseek-llm-67b", "deepseek-moe-16b"],)},
    "roofline": {
        "two": ({"full cache": 1.0, "absorbed": 241.8},),
        "three": ({"7B, decoding": 1.6, "67B, decoding": 7.9, "7B, prefill": 4_200.0},),
        "alike": ({"one": 1.02, "other": 1.03, "third": 1.9},), "fast": ({"prefill": 900.0, "longer": 3_000.0},),
    },
    "wall": {str(batch): (("deepseek-llm-7b", "deepseek-llm-67b"), batch) for batch in (1, 2, 4, 8, 16)},
    "live_loss": {str(end): (range(1, 101), np.linspace(4, end, 100), 3.9) for end in (0.2, 2.0, 3.7)},
    "attention_ablation": {str(times): (experiment(times),) for times in (0, 0.05, 1, 20)},
    "low_rank": {str(times): (experiment(times),) for times in (0.05, 1, 20)},
    "absorption": {
        f"{name}, {new}": (PRESETS[name], new)
        for name in ("deepseek-v3", "mini") for new in (1, 16, 64, 128, 160, 170, 171, 256, 1024)
    },
    "crossing": {str(faster): (LITE, 1024, crossing(faster)) for faster in (0.3, 1, 3)},
    "decoding": {str(last): decoding(*last) for last in ((20, 500, 8), (20, 500, 20), (8, 60, 20), (8, 9, 10))},
    "latent_flow": {
        f"{name}, {form}": (PRESETS[f"deepseek-{name}"] if name != "mini" else PRESETS["mini"], form == "absorbed")
        for name in ("v2-lite", "v2", "v3", "mini") for form in ("expanded", "absorbed")
    },
    "brackets": {str(token): (token,) for token in range(2, 7)},
    "kinds": {"all": (), "dense": (("MHA", "GQA", "MQA"), 6)},
    "step": {f"{kind}, {token}": (kind, token) for kind in KINDS for token in (1, 4, 6)},
    "cache_kinds": {"released": (RELEASED,), "dense": (RELEASED[:3] * 2,)},
    "split": {str(token): (token,) for token in (1, 4, 6)},
    "routing": {str(token): (token,) for token in (1, 4, 6)},
    "gates": {f"{token}, {scale}": (token, scale) for token in (1, 4) for scale in (0.25, 1.0, 4.0)},
    "dispatch": {str(token): (token,) for token in (1, 4, 6)},
    "dropping": {str(capacity): (capacity,) for capacity in range(1, 6)},
    "coloured_text": {"all": (observed(), 1), "one": (observed(), 3, 10)},
    "expert_tokens": {"14": (observed(), 14, 1)},
    "expert_domains": {"1": (observed(), 1)},
    "digits": {"3": (observed(), 3)},
    "pairs": {"1": (observed(), 1), "3": (observed(), 3)},
    "experts_ablation": {"recorded": (load("experts"),)},
    "without": {"recorded": (load("experts"),)},
    "published_experts": {"all": ()},
    "products": {str(padded): (products(padded),) for padded in (0.7, 3)},
    "load_map": {arm: (balance(), arm) for arm in ("none", "loss 0.0001", "bias 0.01", "bias 0.1")},
    "two_load_maps": {"recorded": (balance(),)},
    "domain_load": {"three": (balance(), ["loss 0.01", "batch loss 0.01", "bias 0.01"])},
    **{
        draw: {str(times): (balance(times),) for times in (0.2, 1, 5)}
        for draw in ("tradeoff", "speeds", "scopes", "nodes")
    },
    "headline": {loss: (balance(), LOSS_FREE, loss) for loss in ("loss 0.001", "loss 0.01", "loss 0.1")},
    "drift": {"recorded": (balance(),)},
    "controller": {f"{speed}, {drift}": (speed, drift) for speed in (1e-4, 0.01, 0.3) for drift in (False, True)},
    "assignment": {str(speed): (speed,) for speed in (0.03, 0.1, 0.3)},
    "node_choice": {f"{kept}, {shift}": (kept, shift) for kept in (1, 4, 8) for shift in (-1.0, 0.0)},
    "score_parts": {"two": scores(2, 5), "one": scores(1, 7)},
    "mtp_alignment": {
        f"{depth}, {position}": (("She", " open", "ed", " the", " do", "or", "."), depth, position)
        for depth in (1, 2) for position in (0, 2, 4, 5)
    } | {"toy": (), "eight": (tuple("abcdefgh"), 2, 3)},
    "mtp_ablation": {"recorded": (load("mtp"),)},
    "mtp_published": {"V3": ()},
    "acceptance_rule": {str(closeness): (closeness,) for closeness in (0, 0.5, 0.95, 1)},
    "acceptance_is_overlap": {"drawn": overlaps()},
    "acceptance_by_domain": {"with untrained": accepted(*DOMAINS, "untrained"), "two": accepted(*DOMAINS[:2])},
    "drafted_text": {"prose": drafted("Return the", 0.7), "code": drafted("def add(self, other):\n    ", 0)},
    "speculation_speedup": {f"{a}, {k}": (a, 0.05, 1.05, k) for a in (0, 0.85, 1) for k in (1, 2, 4)},
    "code": {f"{code}, {name}": (code, name) for code in (0, 69, 126, 127, 252) for name in ("E4M3", "E5M2")},
    "number_lines": {"all": ()},
    "magnitudes": {str(power): (magnitudes(), power) for power in (-8, 0, 14, 26)},
    "outlier": {"1e5": (), "1e6": (1_000_000, 0, 383)},
    "tile_width": {"all": ()},
    "tilings": {"two": (dict(zip(("own\ntensor", "made\nlarger"), magnitudes().values(), strict=False)),)},
    "fp8_products": {name: (name, 7, 0) for name in ("Fprop", "Dgrad", "Wgrad", "Wgrad, not re-tiled")},
    "fp8_layer": {"reference": (in_fp8(),)},
    "cut_products": {f"{e}, {cut}": (e, cut) for e in (8, 12, 16) for cut in ("products", "sums")},
    "accumulation_error": {"normal": ([1024, 4096, 16384], register_errors())},
    "fp8_loss": {"recorded": (load("fp8"),)},
    "fp8_arms": {"recorded": (load("fp8"),)},
    "outlier_loss": {
        "three": ((0, 8, 16), {"FP32": [3.7] * 3, "tiles": [3.7, 3.7, 4.1], "one scale": [3.8, 4.6, 8.4]}, 7.6)
    },
    "bytes": {"V3": (V3, PRESETS["mini"])},
    "halves": {str(split): (split,) for split in (True, False)},
    "smaller_stages": {"usual": (), "uneven": (20, 2, 0.5, 3)},
    "stages": {str(stages): (stages,) for stages in (1, 2, 3, 4)},
    "schedule": {name: (name,) for name in ("GPipe", "ZBV", "DualPipe")} | {
        "one rank": ("1F1B", 1, 3), "wide": ("DualPipeV", 8, 40), "slow links": ("ZB1P", 4, 8, 1, 2, 1, 0, 3),
    },
    "gap": {f"{name}, {gap}": (name, gap) for name in ("GPipe", "1F1B", "ZB1P") for gap in (-1, 0, 4)}
    | {"both ways": ("DualPipe", 3, 4, 8)},
    "waits": {"F is I": (), "longer I": (8, 20, 2, 4, 1), "longer W": (8, 20, 1, 1, 2), "gain": (4, 8, 3, 1, 1, 1)},
    "bubble_share": {f"{gain}, {link}": (gain, link) for gain, link in ((0, 0), (1, 0), (0.5, 0.5))},
    "peak_memory": {f"{m}, {link}": (m, gain, link) for m, gain, link in ((32, 0, 0), (128, 1, 0), (16, 0, 0.5))},
    "overlap": {str(communication): (communication,) for communication in (0, 0.25, 1.0, 2.0)},
    "steps": {f"{step}, {rank}": (step, rank) for step in range(9) for rank in (0, 3)}
    | {"5, 6, slower": (5, 6, 0.0), "0, 5, slower": (0, 5, 0.5)},
    "fold": {str(step): (step,) for step in (0, 1, 2)},
    "measured": {
        "usual": executed("DualPipe", 4, 8, 1.1), "same": executed("1F1B", 2, 3, 1), "fast": executed("ZBV", 4, 8, 0.9),
        "slow": executed("GPipe", 8, 20, 2.3),
    },
    "dispatch_bytes": {"V3": (V3,), "V2": (PRESETS["deepseek-v2"], 4)},
    "free_experts": {str(nodes): (V3, nodes) for nodes in (None, 1, 2, 3, 8)},
    "waves": {f"{n}, {ratio}": (n, ratio) for n, ratio in ((1, 0.5), (4, 0.5), (8, 0.3), (16, 1.0), (4, 0))},
    "cluster": {"V3": ()},
    "serving_units": {"V3": ()},
    "grid": {f"{ranks}, {pp}, {ep}": (Layout(ranks, pp=pp, ep=ep),) for ranks, pp, ep in GRIDS},
    "kept": {"tiny": (KEPT, 249_104), "one": ({"dp=2": ([500, 500], [1000, 1000])}, 1000)},
    "journey": {
        f"{hops}, {token}": (chosen(4, 8, 2, 3), hops, token, torch.full((4, 2, 3), 1 / 3))
        for hops in (1, 2) for token in (0, 3)
    } | {
        f"{hops}, crowded": ([[[0, 1, 2, 7]] * 2] * 4, hops, 7) for hops in (1, 2)
    } | {"at home": ([[[2 * r, 2 * r + 1]] for r in range(4)], 2), "one": ([[[5, 6]], *[torch.ones(0, 2)] * 3], 1)},
    "traffic": {
        "three": matrices(4, 2, 3), "two": matrices(8, 4, 6, "per rank", "two hops"), "one node": matrices(4, 4, 2),
        "many": matrices(32, 8, 8), "one": matrices(16, 4, 4, "per rank"), "none": ({"none": np.zeros((2, 2), int)}, 1),
        "four": ({str(n): matrices(8, 4, n, "two hops")[0]["two hops"] for n in (2, 4, 6, 8)}, 4),
        "thousands": ({"large": 1000 * matrices(8, 4, 4)[0]["two hops"], "sends": np.eye(8, k=1) + np.eye(8)[::-1]}, 4),
        "even": ({"more": np.full((8, 8), 12), "fewer": np.full((8, 8), 5)}, 4),
        "skewed": ({"balanced": np.full((8, 8), 9), "skewed": np.full((8, 8), 7) + 14 * (np.arange(8) == 2)}, 4),
    },
    "placement": {
        str(replicas): (torch.arange(1, 33).float().exp2().pow(0.2)[torch.arange(32) * 13 % 32], replicas, 8, 2, 8)
        for replicas in (32, 40, 64)
    } | {"published": ([90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], 16, 4, 2, 8),
         "large": ([7 * i % 31 + 200 * (i % 50 == 1) for i in range(256)], 288, 8, 4, 32)},
    "packing_by_hand": {
        "useless": (), "half useless": ((9, 1, 1, 1, 1, 1), 8, 2), "useful": ((9, 7, 3, 1), 6, 3),
        "none": ((4, 3, 2, 1), 4, 2), "one GPU": ((4, 3), 3, 1), "many": ((20, 19.3, 1, 1, 1, 1, 1), 8, 2),
    },
    "dashboard": {
        "usual": run(), "long": run(640), "one step": run(1), "two domains": run(domains=DOMAINS[:2]),
        "own text": run(domains=("text",)), "equal": run(held_out=(1.5,) * 3), "above": run(held_out=(4.1, 3.9, 6.0)),
        "mixed": run(held_out=(2.5, 1.2, 2.0)), "far apart": run(held_out=(0.9, 0.5, 0.1)),
        "arithmetic never reached": run(3, trained=("prose", "code")),
        "dense": run(layers=0), "without MTP": run(mtp=False), "neither": run(layers=0, mtp=False),
        "one layer": run(layers=1, experts=8), "wide": run(layers=9, experts=256),
        "even": run(max_violation=[0.5] * 4, load=[[100] * 8] * 4), "MTP not trained": run(load=[[9, 7], [0, 0]]),
        "first step": part(1, 1800), "five steps": part(5, 1800), "half": part(900, 1800), "nearly": part(1790, 1800),
        "own domains": part(40, 90, domains=("letters", "mathematics and physics", "e")),
        "another loss": part(30, 60, bits_per_byte={}), "sick": sick(),
        "recorded": (load("miniature")["log"], load("miniature")["runs"][0]["report"]),
        "recorded, first half": (load("miniature")["log"][:450], None, MINIATURE),
    },
    "ablation": {
        "recorded": (recorded_rows(),), "one row": (recorded_rows()[:2],),
        "with a reader's": ((*recorded_rows(), of_a_reader(1.9), of_a_reader(2.4, 2.5)),),
    },
    "scaling": {
        "recorded": (load("scaling"),), "apart": (scaling(-0.1),), "behind": (scaling(0.1),), "mixed": (mixed(),),
    },
    "schedules": {
        "mini": (), "no decay": (TrainConfig(decay_fraction=0.0, frozen_bias_fraction=0.0),), "off": (
            TrainConfig(steps=3, bias_speed=0.0, mtp_weight=0.0, final_mtp_weight=0.0, batch_size=20_000),
        ),
    },
    "growth": {str(power): (curves(power),) for power in (-0.5, 0, 0.5)},
}  # fmt: skip
NAMES = [f"{draw}: {variant}" for draw, variants in ARGUMENTS.items() for variant in variants]


def arguments(name: str) -> tuple:
    draw, _, variant = name.partition(": ")
    return ARGUMENTS[draw][variant]


@cache
def picture(name: str) -> Picture:
    return getattr(plots, f"draw_{name.partition(': ')[0]}")(*arguments(name))


def title(fig: Picture) -> str:
    """What stands in the size of titles; both where there are two."""
    return " ".join(text.get_text() for text in fig.findobj(Text) if text.get_size() == 14 and text.get_text())
