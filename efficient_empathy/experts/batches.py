"""From rendered rows to the batches of every step, known beforehand: what is resumed goes on with the very next one."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from efficient_empathy.dialogues.types import Example
from efficient_empathy.experts.loss import IGNORED
from efficient_empathy.experts.rendering import Rendered, Renderer, RowRefused

Batch = dict[str, Any]
_POOL_STEPS = 8
"""Steps are cut from sorted pools of this many: like lengths together, and still another mix in each epoch."""
_RENDERED_TOGETHER = 1000


@dataclass(frozen=True)
class Row:
    """One example as tokens."""

    id: str
    tokens: np.ndarray
    """Prompt and response, int32 (length,)."""
    start: int
    """Index of the response's first token: from here on all is supervised."""

    @property
    def supervised(self) -> int:
        """Tokens that are learnt, the end of the turn included."""
        return len(self.tokens) - self.start


@dataclass(frozen=True)
class Rows:
    """Examples as tokens, and what became of those that are not among them."""

    rows: list[Row]
    pad: int
    refused: dict[str, int]
    """Examples that cannot be trained on, by reason."""
    cut: int
    """Examples whose oldest context did not fit."""

    @classmethod
    def render(cls, examples: Iterable[Example], renderer: Renderer) -> "Rows":
        """Render examples in their order."""
        rows, refused, cut = [], Counter[str](), 0
        for example, found in _rendered(examples, renderer):
            if isinstance(found, RowRefused):
                refused[found.reason] += 1
                continue
            cut += found.cut_turns > 0
            tokens = np.array([*found.prompt, *found.response], np.int32)
            rows.append(Row(example.id, tokens, len(found.prompt)))
        return cls(rows, renderer.pad_id, dict(refused), cut)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 (n,)."""
        return np.array([len(row.tokens) for row in self.rows], np.int64)

    @property
    def supervised(self) -> int:
        """Tokens that are learnt, of all rows."""
        return sum(row.supervised for row in self.rows)

    def collate(self, indices: Sequence[int]) -> Batch:
        """Tensors of some rows, padded on the right: ``input_ids``, ``attention_mask`` and ``labels``, int64 (rows, longest).

        No rows give one that is masked but for its first token and not supervised: on several devices each must have a batch.
        """
        chosen = [self.rows[index] for index in indices]
        shape = (max(1, len(chosen)), max((len(row.tokens) for row in chosen), default=1))
        input_ids, labels = np.full(shape, self.pad, np.int64), np.full(shape, IGNORED, np.int64)
        mask = np.zeros(shape, np.int64)
        mask[:, 0] = 1
        for place, row in enumerate(chosen):
            length = len(row.tokens)
            input_ids[place, :length] = row.tokens
            labels[place, row.start : length] = row.tokens[row.start :]
            mask[place, :length] = 1
        arrays = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _rendered(examples: Iterable[Example], renderer: Renderer) -> Iterator[tuple[Example, Rendered | RowRefused]]:
    stream = iter(examples)
    while chunk := list(itertools.islice(stream, _RENDERED_TOGETHER)):
        yield from zip(chunk, renderer.render_many(chunk), strict=True)


@dataclass(frozen=True)
class Plan:
    """Which rows go through the model when.

    A step is ``accumulate × ranks`` batches of up to ``batch_size`` rows. Its rows depend on how many rows a step has, not on
    how these are divided: eight at once and two four times are the same step.
    """

    lengths: np.ndarray
    """Tokens of each row, (n,)."""
    batch_size: int
    accumulate: int
    seed: int
    ranks: int = 1
    """Devices that share each step."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every row is seen once."""
        return -(-len(self.lengths) // self._step_rows)

    @property
    def _step_rows(self) -> int:
        return self.batch_size * self.accumulate * self.ranks

    def steps(self, count: int) -> Iterator[list[list[int]]]:
        """The first steps of training, each ``accumulate × ranks`` lists of row indices, of which some may be empty."""
        done, epoch = 0, 0
        while done < count:
            for rows in self._epoch(epoch)[: count - done]:
                pieces = np.array_split(rows, self.accumulate * self.ranks)
                yield [piece.tolist() for piece in pieces]
                done += 1
            epoch += 1

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """Row indices of each step of one epoch, like lengths together."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.lengths))
        pool = self._step_rows * _POOL_STEPS
        steps = []
        for begin in range(0, len(order), pool):
            rows = order[begin : begin + pool]
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            steps += [rows[at : at + self._step_rows] for at in range(0, len(rows), self._step_rows)]
        rng.shuffle(steps)
        return steps


class PlannedBatches:
    """A loader for Lightning over the batches of one rank, which knows where it is and can go on from there."""

    def __init__(self, rows: Rows, plan: Plan, steps: int, rank: int = 0):
        self._rows, self._place = rows, 0
        self._batches: list[tuple[list[int], int]] = []
        for pieces in plan.steps(steps):
            tokens = sum(rows.rows[index].supervised for piece in pieces for index in piece)
            self._batches += [(piece, tokens) for piece in pieces[rank :: plan.ranks]]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        while self._place < len(self._batches):
            piece, tokens = self._batches[self._place]
            self._place += 1
            # What the loss is divided by: tokens of the whole step, on all devices.
            yield {**self._rows.collate(piece), "step_tokens": tokens}
        self._place = 0

    def state_dict(self) -> dict[str, int]:
        """How many batches were handed out."""
        return {"place": self._place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after that many batches."""
        self._place = int(state["place"])


class OrderedBatches:
    """A loader over all rows once, longest first; of several ranks each takes every so manieth batch."""

    def __init__(self, rows: Rows, batch_size: int, rank: int = 0, ranks: int = 1):
        order = np.argsort(-rows.lengths, kind="stable")
        batches = [order[at : at + batch_size].tolist() for at in range(0, len(order), batch_size)]
        # Lightning refuses a rank without a batch; one without rows counts for nothing.
        self._rows, self._batches = rows, batches[rank::ranks] or [[]] * (ranks > 1)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return (self._rows.collate(batch) for batch in self._batches)
