"""The model card: the README.md beside saved weights, which says what the model is and how good it is.

Hugging Face shows it as the model's page. Above the text is a block of YAML, the front matter, from which the site
takes license, library, task, tags and scores. Every number is computed from the configuration and the report of the
training; without a report the card has the sizes only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minids.cost.cache import attention_kind, kv_cache_bytes
from minids.cost.parameters import count_parameters
from minids.model.config import ModelConfig
from minids.text.corpus import CORPUS_SHA256, SOURCES
from minids.text.windows import WINDOW
from minids.units import from_to, markdown_table
from minids.validation import require

CARD = "README.md"
MARK = "---\n# Written by minids with the weights, and replaced together with them.\n"


def is_card(path: Path) -> bool:
    """Return whether the file is a card that minids wrote, and not somebody's own README.md."""
    with path.open("rb") as file:
        return file.read(len(MARK.encode())) == MARK.encode()


def model_card(
    config: ModelConfig, name: str, dtype: str, report: dict | None = None, *, tokenizer: bool, transformers: bool
) -> str:
    """Return the card of a model called `name`, whose weights are stored in `dtype`.

    `report` is what `make_report` returned, in this version or an earlier one; of another dictionary, only known
    entries are used. `tokenizer` and `transformers` say whether there is a tokenizer beside the weights, and whether
    transformers reads them. Raises ValueError if known entries are not of the form that a report has.
    """
    name, report = "".join(c if c.isprintable() else "?" for c in " ".join(name.split())), report or {}
    sizes = "## Sizes\n\n" + markdown_table([["", ""], *_sizes(config, dtype)])
    loading = "## Loading\n\n" + _loading(config, name, tokenizer, transformers)
    try:
        of_report = [*_training(report), *_scores(report, dtype), *_limits(config, report)]
        parts = [f"# {name}", _introduction(config, report), sizes, *of_report, loading]
        front = "\n".join(_yaml(_front_matter(config, name, report, transformers)))
    except (LookupError, TypeError, AttributeError, ValueError):
        require("report", report, False, "the report of a run, as make_report returns it")
    return f"{MARK}{front}\n---\n\n" + "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------------------------------------------
# The front matter


def _front_matter(config: ModelConfig, name: str, report: dict, transformers: bool) -> dict:
    """The entries that Hugging Face knows. `model-index` holds the scores."""
    books = report.get("corpus_sha256") == CORPUS_SHA256
    tags = ["minids", config.to_hf()["model_type"]]
    tags += [tag for tag, has in (
        ("mla", config.uses_mla), ("mixture-of-experts", config.uses_moe),
        ("multi-token-prediction", config.num_nextn_predict_layers > 0),
    ) if has]  # fmt: skip
    entries = {
        "license": "mit" if books else "unknown",  # of weights from other text we cannot know it
        "library_name": "transformers" if transformers else "minids",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    if books:
        entries |= {"language": ["en"]}
    if report.get("bits_per_byte"):
        entries["model-index"] = [{"name": name, "results": list(_results(report))}]
    return entries


def _results(report: dict) -> Iterator[dict]:
    """Yield one result of the model-index for each domain."""
    corpus = "Corpus of minids" if report.get("corpus_sha256") == CORPUS_SHA256 else "The user's own text"
    domains = {name: bits for name, bits in report["bits_per_byte"].items() if name not in ("prose_and_code", "all")}
    for domain, bits in domains.items():
        metrics = [{"type": "bits_per_byte", "name": "bits per byte", "value": round(bits, 4)}]
        if domain == "arithmetic" and report.get("arithmetic_accuracy") is not None:
            share = round(report["arithmetic_accuracy"], 4)
            metrics.append({"type": "accuracy", "name": "problems solved exactly", "value": share})
        yield {
            "task": {"type": "text-generation", "name": "Text generation"},
            "dataset": {
                "type": "minids-corpus", "name": f"{corpus}, held-out {domain}", "config": domain,
                "split": "validation", "revision": report.get("corpus_sha256", "unknown"),
            },
            "metrics": metrics,
        }  # fmt: skip


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Yield the lines of a dictionary or list in YAML. A text or number is written as in JSON, which YAML includes."""
    for key, entry in value.items() if isinstance(value, dict) else ((None, entry) for entry in value):
        inner = (
            [json.dumps(entry, ensure_ascii=False)]
            if not isinstance(entry, dict | list)
            else list(_yaml(entry, indent + "  "))
        )
        if key is None:
            yield f"{indent}- {inner[0].strip()}"
            yield from inner[1:]
        elif isinstance(entry, dict | list):
            yield f"{indent}{key}:"
            yield from inner
        else:
            yield f"{indent}{key}: {inner[0]}"


# ---------------------------------------------------------------------------------------------------
# The text


def _introduction(config: ModelConfig, report: dict) -> str:
    kind = "a mixture of experts" if config.uses_moe else "a dense transformer"
    attention = "multi-head latent attention" if config.uses_mla else f"attention of the kind {attention_kind(config)}"
    what = f"A language model in the architecture `{config.to_hf()['model_type']}`: {kind} with {attention}"
    if config.num_nextn_predict_layers:
        what += " and multi-token prediction (MTP)"
    trained = f", trained on {_corpus(report)}" if report.get("corpus_sha256") else ""
    return f"{what}{trained}. It was saved by minids, a textbook that rebuilds DeepSeek-V3 in miniature."


def _corpus(report: dict) -> str:
    if report.get("corpus_sha256") != CORPUS_SHA256:
        return "the user's own text"
    sources = " and ".join(f"{package} {version}" for package, version in SOURCES.items())
    return f"the corpus of minids (docstrings and code of {sources}, and generated arithmetic)"


def _sizes(config: ModelConfig, dtype: str) -> list[list[str]]:
    c, count = config, count_parameters(config)
    rows = [
        ["parameters", f"{count.total:,}"],
        ["active per token (body and head, without the embedding)", f"{count.active:,}"],
    ]
    if count.mtp:
        rows.append(["in MTP modules, on top of these", f"{count.mtp:,}"])
    rows += [["layers", f"{c.num_hidden_layers:,}"], ["width", f"{c.hidden_size:,}"]]
    if c.uses_moe:
        layers = sum(c.is_moe_layer(i) for i in range(c.num_hidden_layers))
        rows += [
            ["layers with experts", f"{layers:,}"],
            ["experts in each: routed, of these active, shared",
             f"{c.n_routed_experts:,}, {c.num_experts_per_tok}, {c.n_shared_experts or 0}"],
            ["width of an expert", f"{c.moe_intermediate_size:,}"],
        ]  # fmt: skip
    if c.num_nextn_predict_layers:
        rows.append(["MTP modules", f"{c.num_nextn_predict_layers}"])
    return [
        *rows,
        ["heads", f"{c.num_attention_heads:,}"],
        ["cache per token in BF16", f"{kv_cache_bytes(c):,.0f} bytes"],
        ["vocabulary", f"{c.vocab_size:,}"],
        ["weights stored in", dtype],
    ]


def _training(report: dict) -> Iterator[str]:
    if report.get("tokens") and report.get("train"):
        train = report["train"]
        rows = [
            ["tokens", f"{report['tokens']:,}"],
            ["steps, sequences per step, tokens per sequence",
             f"{train['steps']:,}, {train['batch_size']:,}, {train['sequence_length']:,}"],
            ["optimizer", {"muon": "Muon for the matrices, AdamW for the rest"}.get(train.get("optimizer"), "AdamW")],
            ["peak learning rate", f"{train['learning_rate']:g}"],
            ["seed", str(train["seed"])],
            ["products computed in", train["dtype"]],
            ["SHA-256 of the corpus", f"`{report['corpus_sha256']}`"],
        ]  # fmt: skip
        yield f"## Training\n\nThe training text is {_corpus(report)}.\n\n" + markdown_table([["", ""], *rows])


def _scores(report: dict, dtype: str) -> Iterator[str]:
    """Yield the tables of scores. The intervals are absent from older reports."""
    if not report.get("bits_per_byte"):
        return
    intervals = report.get("intervals") or {}
    rows = []
    for domain, bits in report["bits_per_byte"].items():
        base = report["baseline_bits_per_byte"][domain]
        of_bits, below = (intervals.get(of, {}).get(domain) for of in ("bits_per_byte", "below_baseline"))
        ours, gain = _with_interval(bits, of_bits, ".3f"), _with_interval(1 - bits / base, below)
        rows.append([domain.replace("_", " "), ours, f"{base:.3f}", gain])
    text = (
        "## Scores\n\nOn held-out text, measured at the end of the training"
        f" (computing in {report['dtype']}; these files store the weights in {dtype}). Bits per byte are the negative"
        " log2 probability of the text, divided by its bytes; fewer are better. The 5-gram learned from the same rows."
    )
    if intervals:
        text += (
            " Brackets: 95% intervals for other held-out text of the same kind. They do not cover other seeds, with"
            " which the same training gives another model."
        )
    yield text + "\n\n" + markdown_table([["held-out text", "bits per byte", "5-gram", "below the 5-gram"], *rows])
    if shares := list(_shares(report, intervals)):
        yield markdown_table([["share that is exactly right", "model", "for comparison"], *shares])


def _shares(report: dict, intervals: dict) -> Iterator[list[str]]:
    digits = report.get("arithmetic_accuracy_by_digits")
    if digits:
        solved = _with_interval(digits["all"], intervals.get("arithmetic_accuracy", {}).get("all"))
        comparison = f"always the commonest answer: {digits['best_constant']:.1%}"
        yield ["arithmetic, held-out problems", solved, comparison]
    for kind, label in (("above", "names in code that occur above"), ("new", "new names in code")):
        found = (report.get("identifiers") or {}).get(kind)
        if found and found["asked"]:
            comparison = f"what followed the same word before: {found['rule']:.1%}"
            yield [label, _with_interval(found["model"], found["interval"]), comparison]
    if report.get("mtp_agreement") is not None:
        yield ["MTP's token, the main head's in its place", f"{report['mtp_agreement']:.1%}", ""]


def _limits(config: ModelConfig, report: dict) -> Iterator[str]:
    """Yield the section on what the model cannot do; nothing without a report."""
    if report.get("tokens"):
        yield "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _known_limits(config, report))


def _known_limits(config: ModelConfig, report: dict) -> Iterator[str]:
    yield "It continues text. It was not trained to follow instructions, to answer questions, or to refuse any."
    yield "What it writes looks like its training text and is often wrong. Use it to learn and to test, not for facts."
    yield f"It was trained on {report['tokens'] / count_parameters(config).total:.2g} tokens per parameter."
    if report.get("train"):
        length, longest = report["train"]["sequence_length"], config.max_position_embeddings
        if length < longest:
            yield f"It was trained on sequences of {length:,} tokens. Longer ones, up to {longest:,}, are untested."
    digits = {n: s for n, s in (report.get("arithmetic_accuracy_by_digits") or {}).items() if n.isdigit()}
    if digits:
        longest = max(digits, key=int)
        yield f"Of the held-out arithmetic problems with numbers of {longest} digits, it solves {digits[longest]:.1%}."
    for domain, found in (report.get("contamination") or {}).items():
        if found["repeated_rows"]:
            yield (
                f"{found['windows']:.1%} of the {WINDOW}-byte windows of held-out {domain} occur in the training text,"
                f" and {found['repeated_rows']} of {found['rows']} scored rows hold some of it."
            )


def _loading(config: ModelConfig, name: str, tokenizer: bool, transformers: bool) -> str:
    """How to load the folder, for somebody who is where it is."""
    path = json.dumps(name, ensure_ascii=False)
    ours = [f"model = load_pretrained({path})"]
    if tokenizer:
        ours = [
            f"model, tokenizer = load_pretrained({path}), Tokenizer.load({path})",
            'prompt = [tokenizer.end_of_text, *tokenizer.encode("Return the")]',
            "tokenizer.decode(generate(model, prompt, max_new_tokens=32).new_tokens.tolist())",
        ]
    names = "Tokenizer, generate, load_pretrained" if tokenizer else "load_pretrained"
    text = _python(f"from minids import {names}", "", *ours)
    if not transformers:
        return text + "\n\ntransformers does not read these files."
    theirs = [f'model = AutoModelForCausalLM.from_pretrained({path}, dtype="auto")']
    if tokenizer:
        theirs += [
            f'prompt = AutoTokenizer.from_pretrained({path})("Return the", return_tensors="pt")',
            "model.generate(**prompt, max_new_tokens=32)",
        ]
    classes = "AutoModelForCausalLM, AutoTokenizer" if tokenizer else "AutoModelForCausalLM"
    text += "\n\n" + _python(f"from transformers import {classes}", "", *theirs)
    if config.num_nextn_predict_layers:
        text += "\n\ntransformers lists the tensors of MTP as unexpected, because its main class does not use them."
    return text


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _with_interval(value: float, interval: list[float] | None, form: str = ".1%") -> str:
    return f"{value:{form}}" + (f" ({from_to(interval, form)})" if interval else "")
