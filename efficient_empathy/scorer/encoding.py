"""How an example becomes token ids: the same code for training, calibration and scoring.

Layout: ``CLS role turn SEP role turn SEP … SEP role response SEP``. The response and its role are segment 1, all before is
segment 0. Where an example is too long the oldest context goes first; the response is cut, at its end, only when it
alone is too long.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from efficient_empathy.dialogues.types import Example
from efficient_empathy.ranges import within
from efficient_empathy.scorer.tokenising import Tokenises

_SPECIAL_POSITIONS = 3
"""CLS, the SEP between context and response, the final SEP."""


@dataclass(frozen=True)
class EncodingSpec:
    """The ids that frame the text; written to ``scorer.json``."""

    cls: int
    sep: int
    pad: int
    roles: Mapping[str, Sequence[int]]
    """Token ids that name each role, put before its turn."""
    max_tokens: int = 128
    """Longest input, in tokens, with the ids that frame it."""

    def __post_init__(self) -> None:
        within("max_tokens", self.max_tokens, 16, 8192)


@dataclass(frozen=True)
class Encoded:
    """Token ids of several examples, each as long as it is."""

    ids: list[np.ndarray]
    """One int64 vector an example."""
    response_starts: np.ndarray
    """Index of each response's first position (its role), shape (n,): segment 1 begins there."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, shape (n,)."""
        return np.fromiter((len(ids) for ids in self.ids), np.int64, len(self.ids))

    def batch(
        self, rows: Sequence[int] | np.ndarray, pad: int, pad_to: Callable[[int], int] = int
    ) -> dict[str, np.ndarray]:
        """Pad some rows to their longest: ``input_ids``, ``attention_mask``, ``token_type_ids``, each int64 (rows, longest).

        ``pad_to`` makes another length of that, no shorter.
        """
        longest = pad_to(max(len(self.ids[row]) for row in rows))
        input_ids = np.full((len(rows), longest), pad, np.int64)
        attention_mask = np.zeros((len(rows), longest), np.int64)
        token_type_ids = np.zeros((len(rows), longest), np.int64)
        for place, row in enumerate(rows):
            length = len(self.ids[row])
            input_ids[place, :length] = self.ids[row]
            attention_mask[place, :length] = 1
            token_type_ids[place, self.response_starts[row] : length] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}


class Encoder:
    """Turns examples into token ids by an ``EncodingSpec``; each different text is tokenised once a call."""

    def __init__(self, tokenizer: Tokenises, spec: EncodingSpec):
        # A tokenizer file may ask for padding or cutting (the default backbone's pads to 128): both are ours to do.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.spec = spec
        self._roles = {role: list(ids) for role, ids in spec.roles.items()}

    def encode(self, examples: Sequence[Example]) -> Encoded:
        """Token ids of the examples, in their order."""
        spans = self._tokenise(examples)
        spec, roles = self.spec, self._roles
        ids, starts = [], np.zeros(len(examples), np.int64)
        for index, example in enumerate(examples):
            response = [*roles["listener"], *spans[example.response]][: spec.max_tokens - _SPECIAL_POSITIONS]
            context: list[int] = []
            for turn in example.context:
                context += [*roles[turn.role], *spans[turn.text], spec.sep]
            room = spec.max_tokens - _SPECIAL_POSITIONS - len(response)
            kept = context[:-1][-room:] if room else []
            starts[index] = len(kept) + 2
            ids.append(np.array([spec.cls, *kept, spec.sep, *response, spec.sep], np.int64))
        return Encoded(ids, starts)

    def _tokenise(self, examples: Sequence[Example]) -> dict[str, list[int]]:
        texts = chain.from_iterable((*(turn.text for turn in e.context), e.response) for e in examples)
        unique = list(dict.fromkeys(texts))
        encodings = self._tokenizer.encode_batch_fast(unique, add_special_tokens=False)
        return {text: encoding.ids for text, encoding in zip(unique, encodings, strict=True)}


def spec_from_json(record: Mapping[str, Any]) -> EncodingSpec:
    """The encoding section of ``scorer.json``."""
    return EncodingSpec(**record)
