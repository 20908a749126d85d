"""Generated arithmetic: sums, differences and products whose answers can be checked.

A document holds ten solved problems, one per line, such as '12+7=19'. About a fifth of all problems is held
out for validation, and with a + b also b + a, so that held-out problems cannot be answered from memory. The
answers can be checked exactly, which gives a score now and a reward for reinforcement learning later.

Problems and split come from hashes, not from a random generator, so they do not depend on library versions.
"""

import hashlib

from minids.validation import require

PROBLEMS_PER_DOCUMENT = 10


def arithmetic_documents(split: str, count: int) -> list[str]:
    """Return the first `count` documents of a split, 'train' or 'validation'; always the same ones."""
    require("split", split, split in ("train", "validation"), "'train' or 'validation'")
    documents, index = [], 0
    while len(documents) < count:
        lines = []
        while len(lines) < PROBLEMS_PER_DOCUMENT:
            a, operator, b = arithmetic_problem(index)
            index += 1
            if arithmetic_split(a, operator, b) == split:
                lines.append(f"{a}{operator}{b}={solve(a, operator, b)}")
        documents.append("\n".join(lines) + "\n")
    return documents


def arithmetic_problem(index: int) -> tuple[int, str, int]:
    """Return problem number `index` as (a, operator, b). No difference is negative.

    Four problems in six have numbers of one digit, one in six up to two digits, one in six up to three. The
    second factor of a product always has one digit.
    """
    digest = hashlib.sha256(f"problem {index}".encode()).digest()
    operator = "+-*"[digest[0] % 3]
    digits = (1, 1, 1, 1, 2, 3)[digest[1] % 6]
    a = int.from_bytes(digest[8:16]) % 10**digits
    b = int.from_bytes(digest[16:24]) % 10 ** (1 if operator == "*" else digits)
    return (max(a, b), operator, min(a, b)) if operator == "-" else (a, operator, b)


def arithmetic_split(a: int, operator: str, b: int) -> str:
    """Return 'train' or 'validation'; it is the same for a+b and b+a, and for a*b and b*a."""
    a, b = (a, b) if operator == "-" else sorted((a, b))
    digest = hashlib.sha256(f"{a}{operator}{b}".encode()).digest()
    return "validation" if digest[0] < 51 else "train"  # 51 of 256: about a fifth


def solve(a: int, operator: str, b: int) -> int:
    """Return the answer of a problem, against which a model's answer is checked."""
    return {"+": a + b, "-": a - b, "*": a * b}[operator]
