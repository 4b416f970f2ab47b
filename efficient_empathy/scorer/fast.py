"""The fast tier's input: hashed n-grams of the response's tokens, of the turn that it answers, and of what was said before.

Its model averages one learnt vector an n-gram and puts a small network on top: no attention, a few microseconds an example
(Joulin et al. 2017, arXiv 1607.01759). The same code runs in training and in scoring.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from efficient_empathy.dialogues.types import Example
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.tokenising import Tokenises, flat_ids

FIELDS = ("response", "context", "earlier")
"""Inputs of the graph that hold n-grams; each has vectors of its own."""
NUMBERS = len(FIELDS) + 1
"""Columns of the input ``numbers``: the logarithm of 1 + tokens of each field, and of 1 + turns before the response."""
_LETTERS = 8
"""For each token that is read of earlier turns, so many of their last letters are tokenised: long dialogues cost no more."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_PAIR = np.uint64(1_000_003)


@dataclass(frozen=True)
class FastSpec:
    """How n-grams are made; written to ``scorer.json``."""

    bits: int = 16
    """There are 2 ** bits buckets a field, 8 to 22."""
    tokens: int = 64
    """Tokens that are read of each field, 1 to 512: the first of the response and of the turn before it, the last of those
    before that."""

    def __post_init__(self) -> None:
        for name, low, high in (("bits", 8, 22), ("tokens", 1, 512)):
            if not low <= getattr(self, name) <= high:
                raise EmpathyError(f"{name} of the fast tier must be from {low} to {high}, not {getattr(self, name)}.")

    @property
    def buckets(self) -> int:
        """Buckets of a field; the index after the last one is padding."""
        return 1 << self.bits

    def as_dict(self) -> dict[str, int]:
        """What ``scorer.json`` holds."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "FastSpec":
        """Read what ``as_dict`` gave."""
        return cls(**record)


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, one after another."""

    flat: np.ndarray
    """int64 (sum of the lengths,)."""
    starts: np.ndarray
    """int64 (n + 1,): row i is ``flat[starts[i] : starts[i + 1]]``."""

    def padded(self, rows: np.ndarray, pad: int) -> np.ndarray:
        """Some rows as a matrix, int64 (rows, longest), at least one column wide."""
        begins = self.starts[rows]
        lengths = self.starts[rows + 1] - begins
        places = np.arange(max(1, lengths.max(initial=0)))
        inside = places < lengths[:, None]
        found = np.full(inside.shape, pad, np.int64)
        found[inside] = self.flat[(begins[:, None] + places)[inside]]
        return found


@dataclass(frozen=True)
class FastRows:
    """Examples as the fast tier's model reads them."""

    fields: Mapping[str, Ragged]
    """n-grams of each of ``FIELDS``."""
    numbers: np.ndarray
    """float32 (n, ``NUMBERS``)."""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def order(self) -> np.ndarray:
        """Rows by falling number of n-grams: those of like size are run together."""
        sizes = sum(np.diff(field.starts) for field in self.fields.values())
        return np.argsort(-np.asarray(sizes), kind="stable")

    def batch(self, rows: np.ndarray, spec: FastSpec) -> dict[str, np.ndarray]:
        """Inputs of the graph for some rows."""
        padded = {name: field.padded(rows, spec.buckets) for name, field in self.fields.items()}
        return {**padded, "numbers": self.numbers[rows]}


class FastEncoder:
    """Turns examples into n-grams."""

    def __init__(self, tokenizer: Tokenises, spec: FastSpec):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.spec = spec

    def encode(self, examples: Sequence[Example]) -> FastRows:
        """n-grams of the examples, in their order."""
        count = len(examples)
        texts = [example.response for example in examples]
        texts += [example.context[-1].text if example.context else "" for example in examples]
        texts += [self._earlier(example) for example in examples]
        ids, lengths = flat_ids(self._tokenizer, texts)
        lengths_FB = lengths.reshape(len(FIELDS), count)
        parts = np.split(ids, np.cumsum(lengths_FB.sum(1))[:-1])
        parts[-1], lengths_FB[-1] = last_tokens(parts[-1], lengths_FB[-1], self.spec.tokens)
        fields = {name: ngrams(parts[place], lengths_FB[place], self.spec, place) for place, name in enumerate(FIELDS)}
        turns = np.fromiter((len(example.context) for example in examples), np.int64, count)
        return FastRows(fields, np.log1p(np.stack([*lengths_FB, turns], 1)).astype(np.float32))

    def _earlier(self, example: Example) -> str:
        if len(example.context) < 2:
            return ""
        return " ".join(turn.text for turn in example.context[:-1])[-_LETTERS * self.spec.tokens :]


def last_tokens(ids: np.ndarray, lengths: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's last tokens, ``most`` at most.

    Args:
        ids: token ids of all rows, one row after another.
        lengths: tokens of each row, int64 (n,).
        most: tokens that stay.

    Returns:
        As given, without what goes.
    """
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(ids))
    return ids[left <= most], np.minimum(lengths, most)


def ngrams(ids: np.ndarray, lengths: np.ndarray, spec: FastSpec, salt: int) -> Ragged:
    """Buckets of the single tokens and of the pairs of neighbours of each row.

    Args:
        ids: token ids of all rows, one row after another, int64.
        lengths: tokens of each row, int64 (n,).
        spec: how many tokens are read, how many buckets there are.
        salt: tells the fields apart.

    Returns:
        Of each row first the buckets of its tokens, then those of its pairs. A bucket is the highest bits of the n-gram's
        number times 2**64 / golden ratio (Knuth, vol. 3, 6.4).
    """
    rows = np.repeat(np.arange(len(lengths)), lengths)
    begins = np.cumsum(lengths) - lengths
    places = np.arange(len(ids)) - begins[rows]
    if len(lengths) and lengths.max() > spec.tokens:
        read = places < spec.tokens
        ids, rows, places = ids[read], rows[read], places[read]
    singles = np.minimum(lengths, spec.tokens)
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(singles + np.maximum(singles - 1, 0), out=starts[1:])
    numbers = ids.astype(np.uint64) + np.uint64(1)
    shift, offset = np.uint64(64 - spec.bits), np.uint64(salt) << np.uint64(52)
    flat = np.empty(int(starts[-1]), np.int64)
    at = starts[rows] + places
    flat[at] = (numbers + offset) * _GOLDEN >> shift
    paired = np.flatnonzero(rows[1:] == rows[:-1]) if len(rows) else rows
    keys = numbers[paired] * _PAIR + numbers[paired + 1] if len(paired) else numbers[:0]
    flat[at[paired] + singles[rows[paired]]] = (keys + offset) * _GOLDEN >> shift
    return Ragged(flat, starts)
