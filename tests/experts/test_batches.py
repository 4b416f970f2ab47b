"""Plans of batches: every row once an epoch, the same steps however they are divided."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is part of the experts extra")

from efficient_empathy.experts.batches import OrderedBatches, Plan, PlannedBatches, Row, Rows
from efficient_empathy.experts.loss import IGNORED, response_nll


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    found = []
    for index in range(21):
        length = int(rng.integers(4, 20))
        found.append(Row(f"r{index}", np.arange(length, dtype=np.int32) + 8, length // 2))
    return Rows(found, pad=1, refused={}, cut=0)


def test_an_epoch_holds_every_row_once(rows):
    plan = Plan(rows.lengths, batch_size=2, accumulate=2, seed=0)
    assert plan.steps_per_epoch == 6  # 21 rows, 4 a step
    steps = list(plan.steps(12))
    for epoch in (steps[:6], steps[6:]):
        assert sorted(row for step in epoch for piece in step for row in piece) == list(range(21))
    assert steps[:6] != steps[6:]
    assert all(len(step) == 2 for step in steps)


@pytest.mark.parametrize(("batch_size", "accumulate", "ranks"), [(2, 4, 1), (4, 2, 1), (2, 2, 2), (1, 4, 2)])
def test_the_rows_of_a_step_do_not_depend_on_how_it_is_divided(rows, batch_size, accumulate, ranks):
    def rows_of(plan):
        return [[row for piece in step for row in piece] for step in plan.steps(6)]

    assert rows_of(Plan(rows.lengths, 8, 1, seed=3)) == rows_of(Plan(rows.lengths, batch_size, accumulate, 3, ranks))


def test_ranks_share_the_rows_and_know_the_tokens_of_the_whole_step(rows):
    plan = Plan(rows.lengths, batch_size=2, accumulate=1, seed=0, ranks=2)
    shares = [list(PlannedBatches(rows, plan, plan.steps_per_epoch, rank)) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == plan.steps_per_epoch
    seen = 0
    for mine, other in zip(*shares, strict=True):
        assert mine["step_tokens"] == other["step_tokens"]
        supervised = sum(int((batch["labels"] != IGNORED).sum()) for batch in (mine, other))
        assert supervised == mine["step_tokens"]
        seen += supervised
    assert seen == rows.supervised


def test_a_batch_without_rows_has_nothing_supervised(rows):
    batch = rows.collate([])
    assert batch["input_ids"].shape == (1, 1)
    assert batch["labels"].tolist() == [[IGNORED]]


def test_collate_pads_on_the_right_and_supervises_the_response(rows):
    batch = rows.collate([0, 1])
    for place in (0, 1):
        row = rows.rows[place]
        length = len(row.tokens)
        assert batch["input_ids"][place, :length].tolist() == row.tokens.tolist()
        assert batch["attention_mask"][place].sum() == length
        labels = batch["labels"][place]
        assert labels[: row.start].tolist() == [IGNORED] * row.start
        assert labels[row.start : length].tolist() == row.tokens[row.start :].tolist()
        assert (labels[length:] == IGNORED).all()


def test_a_loader_goes_on_where_it_was(rows):
    plan = Plan(rows.lengths, 4, 1, seed=0)
    whole = [batch["input_ids"].tolist() for batch in PlannedBatches(rows, plan, 8)]
    loader = PlannedBatches(rows, plan, 8)
    stream = iter(loader)
    first = [next(stream)["input_ids"].tolist() for _ in range(3)]
    again = PlannedBatches(rows, plan, 8)
    again.load_state_dict(loader.state_dict())
    assert first + [batch["input_ids"].tolist() for batch in again] == whole
    assert len(again) == 8


def test_like_lengths_are_together(rows):
    def waste(batches):
        real = sum(int(batch["attention_mask"].sum()) for batch in batches)
        return 1 - real / sum(batch["attention_mask"].numel() for batch in batches)

    order = np.random.default_rng(0).permutation(21)
    mixed = [rows.collate(order[at : at + 3].tolist()) for at in range(0, 21, 3)]
    assert waste(list(PlannedBatches(rows, Plan(rows.lengths, 3, 1, 0), 7))) < waste(mixed) / 2


def test_the_held_out_rows_are_measured_once_over_all_ranks(rows):
    counts = [sum(len(b["labels"]) for b in OrderedBatches(rows, 4, rank, 2)) for rank in (0, 1)]
    assert sum(counts) == 21


def test_a_rank_that_no_batch_is_left_for_measures_nothing(rows, make_tiny_lm):
    (batch,) = OrderedBatches(rows, 16, 2, 3)  # Lightning stops where a rank has no batch at all
    nll, counts = response_nll(make_tiny_lm(), **batch)
    assert float(nll.sum()) == int(counts.sum()) == 0
    nothing = Rows([], pad=1, refused={}, cut=0)
    assert len(OrderedBatches(nothing, 16)) == 0
