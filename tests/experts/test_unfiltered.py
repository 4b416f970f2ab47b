"""Training from data that nobody has filtered yet."""

import pytest

pytest.importorskip("torch", reason="torch is part of the experts extra")
pytest.importorskip("peft", reason="peft is part of the experts extra")

import lightning as L
import torch

from efficient_empathy import EmpathyError, Scorer
from efficient_empathy.experts.module import ResponseData, ResponseModule
from efficient_empathy.experts.options import ExpertOptions, FitOptions
from efficient_empathy.experts.training import ExpertRequest, prepare
from efficient_empathy.experts.unfiltered import UnfilteredData
from efficient_empathy.scorer.job import Job
from efficient_empathy.selection import ExpressionPolicy

POLICY = ExpressionPolicy({"long": "sensibility > 9"})


@pytest.fixture
def unfiltered(subsets, tmp_path):
    """All rows of three subsets in one file."""
    rows = tmp_path / "raw.jsonl"
    rows.write_bytes(b"".join(part.read_bytes() for part in sorted(subsets.glob("*/part-*.jsonl"))))
    return Job((str(rows),), tmp_path / "filtered")


@pytest.fixture
def options(tiny_lm):
    fit = FitOptions(batch_size=2, accumulate=2, learning_rate=1e-2, epochs=1.0)
    return ExpertOptions(base=str(tiny_lm), max_tokens=128, holdout=0.2, fit=fit)


def test_batches_are_those_of_filter_and_train_expert(unfiltered, options, scorer_folder, tmp_path):
    request = ExpertRequest((str(tmp_path / "filtered" / "long"),), tmp_path / "expert", options)
    data = UnfilteredData(unfiltered, Scorer.load(scorer_folder), POLICY, "long", None, options)
    data.prepare_data()
    prepared = prepare(request)
    data.renderer = prepared.renderer
    data.setup("fit")
    data.setup("validate")
    expected = ResponseData(prepared.train, prepared.held_out, prepared.plan, prepared.steps)
    assert 0 < len(data.chosen.train) + len(data.chosen.held_out) < 120
    assert data.steps == prepared.steps
    for ours, theirs in (
        (data.train_dataloader(), expected.train_dataloader()),
        (data.val_dataloader(), expected.val_dataloader()),
    ):
        ours, theirs = list(ours), list(theirs)
        assert len(ours) == len(theirs) > 0
        assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(ours, theirs, strict=True))


def test_a_trainer_takes_it_as_it_is(unfiltered, options, scorer_folder, tiny_lm, subsets, tmp_path):
    prepared = prepare(ExpertRequest((str(subsets / "sensibility"),), tmp_path / "expert", options))
    scorer = Scorer.load(scorer_folder)
    data = UnfilteredData(unfiltered, scorer, POLICY, "long", prepared.renderer, options)
    module = ResponseModule(prepared.model, options.fit, options.seed)
    trainer = L.Trainer(
        max_epochs=1,
        accumulate_grad_batches=options.fit.accumulate,
        use_distributed_sampler=False,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (before,) = trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    (after,) = trainer.validate(module, datamodule=data, verbose=False)
    assert trainer.global_step == data.steps > 5
    assert after["val/nll"] < 0.9 * before["val/nll"]


def test_a_subset_that_the_policy_does_not_have(unfiltered, scorer_folder):
    with pytest.raises(EmpathyError, match="long, discarded, not 'warm'"):
        UnfilteredData(unfiltered, Scorer.load(scorer_folder), POLICY, "warm", None)
