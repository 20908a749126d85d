"""What each expert of a trained model has learned to process: which domains, which tokens, and together with which
other experts (chapter 4).

`observe` routes held-out text once; all other functions only count what it returns. Layers are MoE layers, from 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from minids.book.probes.routing import gate_outputs, information, information_and_control
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.text.batches import encode_split
from minids.text.corpus import Corpus
from minids.text.tokenizer import Tokenizer
from minids.training.report import spread, validation_rows
from minids.validation import require

LENGTH = 256  # tokens of a row
LEAST = 20  # times that a token must occur before its share is looked at
STEPS = 30  # of the fit in `expected_pairs`
SHUFFLES = 20  # of the control in `digits_control`


@dataclass(frozen=True)
class Observed:
    """Held-out rows of tokens (B, T), as many of each domain, with the experts of each token and their weights g."""

    config: ModelConfig
    spelled: list[str]  # what each token of the vocabulary stands for
    domains: list[str]  # in the order of the rows
    tokens: np.ndarray  # (B, T)
    experts: np.ndarray  # (layers, B, T, K)
    weights: np.ndarray  # (layers, B, T, K)

    @property
    def rows_per_domain(self) -> int:
        return len(self.tokens) // len(self.domains)

    def layer(self, layer: int) -> np.ndarray:
        """Return the experts chosen in a MoE layer, (B, T, K); ValueError for a layer that is not there."""
        return self.experts[self.index(layer)]

    def index(self, layer: int) -> int:
        require("layer", layer, 1 <= layer <= len(self.experts), f"1 to {len(self.experts)}")
        return layer - 1

    def rows(self, domain: str) -> slice:
        """Return where a domain's rows are."""
        first = self.domains.index(domain) * self.rows_per_domain
        return slice(first, first + self.rows_per_domain)


def observe(model: DeepSeek, tokenizer: Tokenizer, corpus: Corpus, rows: int = 59) -> Observed:
    """Route held-out text of every domain: `rows` rows of each, or fewer where a domain has fewer."""
    held_out = validation_rows(encode_split(tokenizer, corpus.validation), LENGTH)
    rows = min(rows, *map(len, held_out.values()))
    tokens = np.concatenate([spread(part, rows)[:, :-1] for part in held_out.values()]).astype(np.int64)
    weights, experts = gate_outputs(model, tokens)
    spelled = [piece.decode("utf-8", errors="replace") for piece in tokenizer.token_bytes()]
    return Observed(model.config, spelled, list(held_out), tokens, experts.numpy(), weights.numpy())


# ---------------------------------------------------------------------------------------------------
# Domains


def relative_shares(observed: Observed, layer: int) -> np.ndarray:
    """Return how often each domain's tokens choose each expert, (domains, E): 1 is as often as if all were alike."""
    n_experts = observed.config.n_routed_experts
    experts = observed.layer(layer).reshape(len(observed.domains), -1)
    return np.stack([np.bincount(part, minlength=n_experts) for part in experts]) * n_experts / experts.shape[1]


def bits_about_domain(observed: Observed, *domains: str) -> list[tuple[float, float]]:
    """Return, for each layer, the bits that a chosen expert tells about the domain, and those with rows shuffled.

    With names of domains only of their rows.
    """
    domains, n_experts = domains or observed.domains, observed.config.n_routed_experts
    labels = [domain for domain in domains for _ in range(observed.rows_per_domain)]
    layers = [np.concatenate([layer[observed.rows(domain)] for domain in domains]) for layer in observed.experts]
    return [information_and_control(torch.from_numpy(layer), labels, n_experts) for layer in layers]


def bits_about_token(observed: Observed, seed: int = 0) -> list[tuple[float, float]]:
    """Return, for each layer, the bits that a chosen expert tells about its token, and those with tokens shuffled."""
    shuffled = np.random.default_rng(seed).permutation(observed.tokens.ravel()).reshape(observed.tokens.shape)
    return [
        (information(_by_token(observed, observed.tokens, layer)), information(_by_token(observed, shuffled, layer)))
        for layer in observed.experts
    ]


# ---------------------------------------------------------------------------------------------------
# Tokens


@dataclass(frozen=True)
class Preferred:
    """A token that an expert prefers: how often it was seen, and the share of it that was routed to the expert."""

    token: int
    seen: int
    share: float
    lift: float  # the share over that of all tokens


def preferred_tokens(observed: Observed, layer: int, expert: int) -> list[Preferred]:
    """Return the tokens that are routed to an expert more often than the average token, the highest lift first.

    Only tokens seen LEAST times or more; of equal lifts, the token seen more often first. Raises ValueError for an
    expert that is not there.
    """
    n_experts = observed.config.n_routed_experts
    require("expert", expert, 0 <= expert < n_experts, f"0 to {n_experts - 1}")
    routed = _by_token(observed, observed.tokens, observed.layer(layer))[:, expert]
    seen = np.bincount(observed.tokens.ravel(), minlength=len(routed))
    share = routed / np.maximum(seen, 1)
    average = float(routed.sum() / seen.sum())
    tokens = np.flatnonzero((seen >= LEAST) & (share > average))
    order = sorted(tokens.tolist(), key=lambda token: (-share[token], -seen[token]))
    return [Preferred(token, int(seen[token]), float(share[token]), float(share[token]) / average) for token in order]


def typical_tokens(observed: Observed, layer: int, expert: int, count: int) -> list[Preferred]:
    """Return the preferred tokens that tell most about an expert: those that are both frequent and often routed to it.

    In the order of share of the expert's tokens times the logarithm of the lift.
    """
    found = preferred_tokens(observed, layer, expert)
    return sorted(found, key=lambda token: -token.seen * token.share * np.log(token.lift))[:count]


def places(observed: Observed, layer: int, expert: int, token: int) -> list[tuple[int, int]]:
    """Return where (row, position) a token is routed to an expert."""
    there = (observed.tokens == token) & (observed.layer(layer) == expert).any(axis=-1)
    return [(int(row), int(position)) for row, position in zip(*np.nonzero(there), strict=True)]


def first_experts(observed: Observed, layer: int) -> np.ndarray:
    """Return the expert with the largest weight of each token, (B, T)."""
    best = observed.weights[observed.index(layer)].argmax(axis=-1)
    return np.take_along_axis(observed.layer(layer), best[..., None], axis=-1)[..., 0]


def weights_of(observed: Observed, layer: int, expert: int) -> np.ndarray:
    """Return an expert's share of each token's weights, (B, T): 0 where it is not chosen."""
    weights = observed.weights[observed.index(layer)]
    return (weights * (observed.layer(layer) == expert)).sum(axis=-1) / weights.sum(axis=-1)


def same_first_expert(observed: Observed, layer: int) -> tuple[float, float]:
    """Return how often two occurrences of the same token have the same first expert, and how often any two tokens.

    The mean over all tokens that occur twice or more, of the share of pairs of their occurrences.
    """
    counts = _by_token(observed, observed.tokens, first_experts(observed, layer)[..., None])
    seen = counts.sum(axis=1)
    twice = seen > 1
    alike = [(part * (part - 1)).sum(axis=-1) for part in (counts[twice], counts.sum(axis=0))]
    share = alike[0] / (seen * (seen - 1))[twice]
    return float(np.average(share, weights=seen[twice])), float(alike[1] / (seen.sum() * (seen.sum() - 1)))


def _by_token(observed: Observed, tokens: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """Return how often each token of the vocabulary is routed to each expert, (vocabulary, E)."""
    n_experts, vocabulary = observed.config.n_routed_experts, len(observed.spelled)
    cells = tokens[..., None] * n_experts + experts
    return np.bincount(cells.ravel(), minlength=vocabulary * n_experts).reshape(vocabulary, n_experts)


# ---------------------------------------------------------------------------------------------------
# Digits

PARTS_OF_PROBLEM = ("first number", "second number", "answer")


def digits(observed: Observed) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return every digit of the arithmetic problems: its row and position, its value, and its part of the problem.

    A part is 0 in the first number, 1 in the second and 2 in the answer, as in 57+66=123. A row's digits before its
    first newline are left out, because the beginning of their problem may be missing.
    """
    rows, found = observed.rows("arithmetic"), []
    for row in range(rows.start, rows.stop):
        part = None
        for position, token in enumerate(observed.tokens[row]):
            text = observed.spelled[token]
            if text in ("", "\n"):  # after the end of a document or line a problem begins
                part = 0
            elif part == 0 and text in ("+", "-", "*"):
                part = 1
            elif part is not None and text == "=":
                part = 2
            elif len(text) == 1 and text.isdigit() and part is not None:
                found.append((row, position, int(text), part))
    return tuple(np.array(found, dtype=int).reshape(-1, 4).T)


def parts_of_digits(observed: Observed, layer: int) -> np.ndarray:
    """Return which share of each part's digits is routed to each expert, (3, E); each row sums to K."""
    rows, positions, _, parts = digits(observed)
    hot = np.zeros((len(parts), observed.config.n_routed_experts))
    np.put_along_axis(hot, observed.layer(layer)[rows, positions], 1, axis=1)
    return np.stack([hot[parts == part].mean(axis=0) for part in range(3)])


def bits_about_digits(observed: Observed, layer: int) -> tuple[float, float]:
    """Return the bits that a digit's first expert tells about its value, and about its part of the problem."""
    rows, positions, *labels = digits(observed)
    return _bits_about(observed, labels, first_experts(observed, layer)[rows, positions])


def digits_control(observed: Observed, layer: int, seed: int = 0) -> tuple[float, float]:
    """Return the mean bits that `bits_about_digits` finds, of value and part, with the digits' experts shuffled.

    Bits are never below 0, and of few digits they are more for ten values than for three parts.
    """
    rows, positions, *labels = digits(observed)
    first, rng = first_experts(observed, layer)[rows, positions], np.random.default_rng(seed)
    value, part = np.mean([_bits_about(observed, labels, rng.permutation(first)) for _ in range(SHUFFLES)], axis=0)
    return float(value), float(part)


def _bits_about(observed: Observed, labels: list[np.ndarray], experts: np.ndarray) -> tuple[float, float]:
    """Return the bits that experts tell about each of two labels: values, and parts of the problem."""
    of_value, of_part = (np.zeros((number, observed.config.n_routed_experts)) for number in (10, len(PARTS_OF_PROBLEM)))
    for table, label in zip((of_value, of_part), labels, strict=True):
        np.add.at(table, (label, experts), 1)
    return information(of_value), information(of_part)


# ---------------------------------------------------------------------------------------------------
# Pairs


def pairs(observed: Observed, layer: int) -> np.ndarray:
    """Return how many tokens are routed to both experts of each pair, (E, E), with zeros on the diagonal."""
    chosen = observed.layer(layer).reshape(-1, observed.config.num_experts_per_tok)
    hot = np.zeros((len(chosen), observed.config.n_routed_experts))
    np.put_along_axis(hot, chosen, 1, axis=1)
    counts = hot.T @ hot
    np.fill_diagonal(counts, 0)
    return counts


def expected_pairs(counts: np.ndarray, n_groups: int = 1) -> np.ndarray:
    """Return the pairs to expect of experts that are chosen independently of each other but as often as they are.

    A token's experts are distinct, so the product of two experts' shares would be too high an expectation: every
    token has K (K - 1) / 2 pairs, and none of an expert with itself. What is fitted instead is a_i a_j for i ≠ j, with
    the same sum for each expert as the counts.

    With groups, it is a_i a_j c_gh, and the sums of all pairs within and between the groups g and h are those of the
    counts, too. This is what a choice of groups alone would lead to.
    """
    n_experts = len(counts)
    apart = 1 - np.eye(n_experts)
    a, c = np.ones(n_experts), np.ones((n_groups, n_groups))
    size = n_experts // n_groups

    def by_groups(table: np.ndarray) -> np.ndarray:
        return table.reshape(n_groups, size, n_groups, size).sum(axis=(1, 3))

    def fitted() -> np.ndarray:
        return np.outer(a, a) * apart * np.kron(c, np.ones((size, size)))

    for _ in range(STEPS):  # iterative proportional fitting
        a *= np.sqrt(_ratio(counts.sum(axis=1), fitted().sum(axis=1)))
        c *= _ratio(by_groups(counts), by_groups(fitted()))
    return fitted()


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(b), where=b > 0)


def typical_of_pair(observed: Observed, layer: int, pair: tuple[int, int], count: int) -> list[int]:
    """Return the tokens that tell most about a pair of experts: both frequent and often routed to both of them."""
    chosen = observed.layer(layer)
    both = np.logical_and(*((chosen == expert).any(axis=-1) for expert in pair))
    vocabulary = len(observed.spelled)
    routed, seen = (
        np.bincount(part, minlength=vocabulary) for part in (observed.tokens[both], observed.tokens.ravel())
    )
    lift = _ratio(routed / max(routed.sum(), 1), seen / seen.sum())
    told = routed * np.log(np.maximum(lift, 1))
    return [int(token) for token in np.argsort(-told, kind="stable")[:count] if told[token] > 0]


def pairs_of_group_limit(config: ModelConfig) -> float:
    """Return how many times as often as any two experts two of one group are chosen, if all is drawn at random.

    First `topk_group` of the groups, then K of their experts: what the limit to some groups does on its own.
    """
    inside = config.n_routed_experts // config.n_group - 1  # experts of the same group as another one
    outside = config.n_routed_experts - 1 - inside
    kept = (config.topk_group - 1) / max(config.n_group - 1, 1)  # of the other groups, where this one is
    return (inside + outside) / (inside + outside * kept)


def within_groups(table: np.ndarray, n_groups: int) -> np.ndarray:
    """Return which pairs (E, E) are of two experts of one group."""
    group = np.arange(len(table)) // (len(table) // n_groups)
    return (group[:, None] == group) & ~np.eye(len(table), dtype=bool)
