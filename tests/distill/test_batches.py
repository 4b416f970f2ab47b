"""Splits that keep conversations whole, and batches of like lengths."""

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efficient_empathy.distill.batches import (
    EncodedRows,
    LikeLengths,
    ordered_loader,
    split_by_conversation,
    training_loader,
)
from efficient_empathy.distill.training import fit_quietly
from efficient_empathy.scorer.encoding import Encoded

GROUPS = st.lists(st.text(max_size=2), min_size=1, max_size=60)


@given(GROUPS, st.floats(0.05, 0.95), st.integers(0, 2**31 - 1))
def test_a_split_is_a_partition_that_cuts_no_conversation(groups, share, seed):
    first, second = split_by_conversation(groups, share, seed)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(groups)))
    assert not {groups[row] for row in first} & {groups[row] for row in second}
    assert len(first) > 0
    assert (len(second) > 0) == (len(set(groups)) > 1)
    assert (np.diff(first) > 0).all()
    assert (np.diff(second) > 0).all()


@given(GROUPS, st.integers(0, 1000), st.data())
def test_a_split_does_not_depend_on_the_order_of_the_rows(groups, seed, data):
    order = data.draw(st.permutations(range(len(groups))))
    _, second = split_by_conversation(groups, 0.3, seed)
    _, shuffled = split_by_conversation([groups[row] for row in order], 0.3, seed)
    assert {groups[row] for row in second} == {groups[order[row]] for row in shuffled}


def test_a_split_has_about_the_share_that_was_asked_for():
    # 100 conversations of three rows: 15 % of 300 rows are 45, which 15 conversations hold exactly.
    groups = [f"c{row // 3}" for row in range(300)]
    assert len(split_by_conversation(groups, 0.15, 0)[1]) == 45
    assert split_by_conversation(groups, 0.15, 0)[1].tolist() != split_by_conversation(groups, 0.15, 1)[1].tolist()


def test_one_large_conversation_leaves_no_side_empty():
    groups = ["a", "b", "c", *["large"] * 97]
    for seed in range(20):
        first, second = split_by_conversation(groups, 0.15, seed, least=2)
        assert len(first) > 0
        assert len({groups[row] for row in second}) >= 2


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200).map(np.array), st.integers(1, 17), st.integers(0, 9))
def test_each_row_comes_once_an_epoch(lengths, batch_size, epoch):
    sampler = LikeLengths(lengths, batch_size, seed=3)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == len(sampler)
    assert max(map(len, batches)) <= batch_size


def test_same_seed_same_batches_another_epoch_others():
    lengths = np.random.default_rng(0).integers(5, 100, 200)

    def batches(seed, epoch):
        sampler = LikeLengths(lengths, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(1, 0) == batches(1, 0)
    assert batches(1, 0) != batches(1, 1)
    assert batches(1, 0) != batches(2, 0)


def test_batches_hold_like_lengths():
    lengths = np.random.default_rng(0).integers(5, 100, 800)
    spread = [np.ptp(lengths[batch]) for batch in LikeLengths(lengths, 8, 0)]
    assert np.mean(spread) < 20  # eight of a sorted pool of 64; of random rows it would be about 74


def encoded_rows(count):
    rng = np.random.default_rng(0)
    ids = [np.arange(1, 5 + rng.integers(1, 30)) for _ in range(count)]
    return EncodedRows(Encoded(ids, np.full(count, 2)), np.zeros((count, 1)), 0)


def test_lightning_gives_each_epoch_another_order():
    class Watch(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen = {}

        def training_step(self, batch, _):
            self.seen.setdefault(self.current_epoch, []).append(batch["rows"].tolist())
            return self.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD([self.weight], 0.1)

    def watched():
        module = Watch()
        fit_quietly(module, training_loader(encoded_rows(50), 4, seed=7), None, 3, 7, [])
        return module.seen

    seen = watched()
    assert [sorted(row for batch in seen[epoch] for row in batch) for epoch in range(3)] == [list(range(50))] * 3
    assert seen[0] != seen[1] != seen[2] != seen[0]
    assert watched() == seen


def test_the_ordered_loader_goes_through_all_rows_longest_first():
    rows = encoded_rows(30)
    seen = [row for batch in ordered_loader(rows, 8) for row in batch["rows"].tolist()]
    assert sorted(seen) == list(range(30))
    lengths = rows.encoded.lengths[seen]
    assert (np.diff(lengths) <= 0).all()


def test_a_batch_carries_its_rows_and_targets():
    targets = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    rows = EncodedRows(
        Encoded([np.array([1, 2, 3]), np.array([1, 2, 7, 3]), np.array([1, 3])], np.array([1, 2, 1])),
        targets, 0,
    )  # fmt: skip
    batch = rows.collate([2, 1])
    assert batch["targets"].tolist() == [[4.0, 5.0], [2.0, 3.0]]
    assert batch["rows"].tolist() == [2, 1]
    assert batch["input_ids"].tolist() == [[1, 3, 0, 0], [1, 2, 7, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 0, 0], [0, 0, 1, 1]]


def test_rows_without_states_have_none_in_a_batch():
    first, second = encoded_rows(3), encoded_rows(5)
    assert "states" not in first.with_rows(second).collate([0])
    taught = EncodedRows(second.encoded, second.targets.numpy(), 0, np.arange(10.0).reshape(5, 2))
    states = first.with_rows(taught).collate([4, 0])["states"]
    assert states[0].tolist() == [2.0, 3.0]
    assert states[1].isnan().all()


def test_rows_are_put_after_one_another():
    first, second = encoded_rows(3), encoded_rows(5)
    both = first.with_rows(second)
    assert len(both) == 8
    assert both.encoded.ids[3].tolist() == second.encoded.ids[0].tolist()
    assert both.targets.shape == (8, 1)


@pytest.mark.parametrize("least", [1, 3])
def test_least_conversations(least):
    groups = [f"c{row}" for row in range(10)]
    assert len(split_by_conversation(groups, 0.05, 0, least)[1]) == least
