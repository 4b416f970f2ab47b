"""Rows for training: splits that keep conversations whole, and batches of like lengths."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from efficient_empathy.scorer.encoding import Encoded

Batch = dict[str, torch.Tensor]
_POOL_BATCHES = 8
"""Batches are cut from sorted pools of this many: like lengths together, and still another mix in each epoch."""


def split_by_conversation(
    groups: Sequence[str], share: float, seed: int, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows in two so that no conversation is on both sides.

    Args:
        groups: the conversation of each row.
        share: about how much of the rows the second side gets; the last conversation always stays on the first side.
        seed: of the choice; it does not depend on the order of the rows.
        least: conversations that the second side gets in any case.

    Returns:
        Row indices of both sides, each int64 and ascending.
    """
    names = sorted(set(groups))
    conversations = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    sizes = dict.fromkeys(conversations, 0)
    for group in groups:
        sizes[group] += 1
    wanted, taken = share * len(groups), 0
    second: set[str] = set()
    for name in conversations[:-1]:
        if taken >= wanted and len(second) >= least:
            break
        second.add(name)
        taken += sizes[name]
    inside = np.fromiter((group in second for group in groups), bool, len(groups))
    return np.flatnonzero(~inside), np.flatnonzero(inside)


class EncodedRows(Dataset[int]):
    """Row numbers; the collate function turns a batch of them into tensors, padded to the longest of that batch.

    Args:
        encoded: the rows.
        targets: probabilities that the score is more than each point, (n, points).
        pad: token that fills batches up.
        states: a teacher's states of each row, (n, states), NaN for rows without; None where no row has any.
    """

    def __init__(self, encoded: Encoded, targets: np.ndarray, pad: int, states: np.ndarray | None = None):
        self.encoded = encoded
        self.targets = torch.from_numpy(np.asarray(targets, np.float32))
        self.pad = pad
        self.states = None if states is None else torch.from_numpy(np.asarray(states, np.float32))

    def __len__(self) -> int:
        return len(self.encoded.ids)

    def __getitem__(self, row: int) -> int:
        return row

    def with_rows(self, more: "EncodedRows") -> "EncodedRows":
        """These rows, which have no states, and some more after them."""
        starts = np.concatenate([self.encoded.response_starts, more.encoded.response_starts])
        encoded = Encoded([*self.encoded.ids, *more.encoded.ids], starts)
        targets = torch.cat([self.targets, more.targets]).numpy()
        if more.states is None:
            return EncodedRows(encoded, targets, self.pad)
        none = torch.full((len(self), more.states.shape[1]), torch.nan)
        return EncodedRows(encoded, targets, self.pad, torch.cat([none, more.states]).numpy())

    def collate(self, rows: list[int]) -> Batch:
        """Tensors of some rows: the encoder's inputs, ``targets`` (rows, points), ``rows`` (rows,), ``states`` (rows, states)."""
        batch = {name: torch.from_numpy(array) for name, array in self.encoded.batch(rows, self.pad).items()}
        index = torch.tensor(rows)
        batch |= {"targets": self.targets[index], "rows": index}
        return batch if self.states is None else {**batch, "states": self.states[index]}


class LikeLengths(Sampler[list[int]]):
    """Batches of rows of like length, in another order each epoch; the same seed gives the same batches."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int):
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    @property
    def sampler(self) -> "LikeLengths":
        """Itself: Lightning tells a loader's sampler which epoch it is, and its batch sampler's, but not the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of one epoch; Lightning calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self._seed, self._epoch))
        order = rng.permutation(len(self._lengths))
        pool = self._batch_size * _POOL_BATCHES
        batches = []
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
            batches += [rows[at : at + self._batch_size] for at in range(0, len(rows), self._batch_size)]
        rng.shuffle(batches)
        yield from (batch.tolist() for batch in batches)


def training_loader(rows: EncodedRows, batch_size: int, seed: int) -> DataLoader[int]:
    """A loader of shuffled batches of like lengths."""
    sampler = LikeLengths(rows.encoded.lengths, batch_size, seed)
    return DataLoader(rows, batch_sampler=sampler, collate_fn=rows.collate)


def ordered_loader(rows: EncodedRows, batch_size: int) -> DataLoader[int]:
    """A loader that goes through all rows once, longest first."""
    order = np.argsort(-rows.encoded.lengths, kind="stable")
    batches = [order[at : at + batch_size].tolist() for at in range(0, len(order), batch_size)]
    return DataLoader(rows, batch_sampler=batches, collate_fn=rows.collate)
