"""Every flag of the commands that rate and train reaches the object that it stands for: none is read and then forgotten."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import orjson
import pytest
from click.testing import CliRunner

from efficient_empathy.distill import commands as distilling
from efficient_empathy.distill.from_files import DistillRequest
from efficient_empathy.distill.options import JudgeOptions
from efficient_empathy.distill.settings import DistillOptions, FastOptions, TrainingOptions
from efficient_empathy.experts.commands import train_expert_command
from efficient_empathy.experts.options import DeviceOptions, ExpertOptions, FitOptions, LoraOptions
from efficient_empathy.scorer import commands as rating
from efficient_empathy.scorer.cascade import DEFAULT_MAX_FLIPS
from efficient_empathy.scorer.job import Job
from efficient_empathy.scorer.ray_options import RayOptions
from efficient_empathy.selection import ExpressionPolicy
from efficient_empathy.selection.commands import filter_command
from efficient_empathy.selection.policies import ReleasedScriptPolicy


def words_of(command, flags, without=()):
    """The command line of some flags: all that the command has but ``--config`` and ``without``, none at its default."""
    there = {parameter.opts[-1]: parameter for parameter in command.params if isinstance(parameter, click.Option)}
    assert flags.keys() == there.keys() - {"--config", *without}
    assert [flag for flag, value in flags.items() if str(value) == str(there[flag].default)] == []
    return [word for flag, value in flags.items() for word in ([flag] if value is True else [flag, str(value)])]


def call(command, words):
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def rated(monkeypatch):
    """What a run would be started with: job, policy, way to tell how far it is, and how the scorer was loaded."""
    seen = SimpleNamespace()

    def load(folder, **options):
        seen.folder, seen.loaded = folder, options

    def run(job, scorer, route, progress):
        seen.job, seen.route, seen.progress = job, route, progress
        return SimpleNamespace(already_done=False, manifest={"kind": "seen"})

    monkeypatch.setattr(rating, "Scorer", SimpleNamespace(load=load))
    monkeypatch.setattr(rating, "run", run)
    monkeypatch.setattr(rating, "progress_for", lambda write, how: how)
    return seen


RATING = {
    "--scorer": "s",
    "--out": "o",
    "--examples": "last-turn",
    "--format": "parquet",
    "--device": "openvino",
    "--tier": "fast",
    "--precision": "int8",
    "--workers": 3,
    "--threads": 2,
    "--tokenizer": "tokenizers",
    "--max-rejected": 0.5,
    "--overwrite": True,
    "--progress": "lines",
    "--json": True,
}
OF_RAY = ("--engine", "--address", "--gpus")


@pytest.mark.parametrize("command", [rating.score_command, filter_command])
def test_every_flag_of_rating_reaches_the_job_and_the_scorer(rated, command):
    filters = command is filter_command
    own = {"--policy": "released-script", "--threshold": 4.0, "--max-flips": 0.2} if filters else {}
    without = [*OF_RAY, "--dry-run", "--keep"] if filters else [*OF_RAY, "--dry-run"]
    found = call(command, ["a.jsonl", "b.jsonl", *words_of(command, {**RATING, **own}, without)])
    assert orjson.loads(found) == {"kind": "seen"}
    assert rated.job == Job(
        ("a.jsonl", "b.jsonl"),
        Path("o"),
        examples="last-turn",
        format="parquet",
        max_rejected=0.5,
        overwrite=True,
        workers=3,
    )
    policy = ReleasedScriptPolicy(4.0) if filters else None
    assert (rated.route, rated.progress, rated.folder) == (policy, "lines", "s")
    assert rated.loaded == {
        "device": "openvino",
        "precision": "int8",
        "threads": 2,
        "tokenizer": "tokenizers",
        "tier": "fast",
        "policy": policy,
        "max_flips": 0.2 if filters else DEFAULT_MAX_FLIPS,
    }


def test_subsets_of_your_own_reach_the_run_in_their_order(rated):
    keep = ["--keep", "calm=sensibility>6", "--keep", "clear=rationality>6"]
    call(filter_command, ["a.jsonl", "--scorer", "s", "-o", "o", *keep, "--json"])
    assert rated.route == ExpressionPolicy({"calm": "sensibility>6", "clear": "rationality>6"})
    assert rated.route.subsets == ("calm", "clear", "discarded")
    assert rated.loaded["policy"] == rated.route


def test_the_flags_of_ray_reach_the_job(rated):
    words = ["a.jsonl", "--scorer", "s", "-o", "o", "--engine", "ray", "--address", "head:1", "--gpus", "0.5", "--json"]
    call(filter_command, words)
    assert rated.job == Job(("a.jsonl",), Path("o"), workers="auto", ray=RayOptions("head:1", 0.5))
    # The GPUs are the actors'.
    assert (rated.loaded["device"], rated.loaded["precision"]) == ("cpu", "fp32")
    call(filter_command, [*words[:-3], "--device", "cuda", "--json"])
    assert rated.job.ray == RayOptions("head:1", 1.0)


JUDGING = {
    "--judge": "openai:m",
    "--rubric": "r.yaml",
    "--budget": 5,
    "--store": "s.sqlite",
    "--base-url": "http://x/v1",
    "--api-key-env": "KEY",
    "--concurrency": 2,
    "--max-usd": 1.5,
    "--prices": "p.yaml",
    "--retry-unscored": True,
    "--max-tokens": 99,
    "--timeout": 9.0,
}
TRAINING = {
    "--dialogues": "d.jsonl",
    "--out": "o",
    "--examples": "last-turn",
    "--effort": "high",
    "--teacher": "t",
    "--backbone": "b",
    "--layers": 3,
    "--epochs": 5,
    "--max-length": 64,
    "--holdout": 0.3,
    "--fast-examples": 9,
    "--fp16": True,
    "--seed": 7,
    "--json": True,
}


def test_every_flag_of_distill_reaches_the_request(monkeypatch):
    seen = []
    monkeypatch.setattr(distilling, "distill_from_files", lambda request, progress: seen.append(request))
    monkeypatch.setattr(distilling, "report", lambda folder: (f"of {folder}", {"of": str(folder)}))
    command = distilling.distill_command
    words = words_of(command, {**JUDGING, **TRAINING}, ["--labels", "--dry-run"])
    assert orjson.loads(call(command, words)) == {"of": "o"}
    judging = JudgeOptions(
        "openai:m",
        rubric=Path("r.yaml"),
        budget=5,
        seed=7,
        store=Path("s.sqlite"),
        base_url="http://x/v1",
        api_key_env="KEY",
        concurrency=2,
        max_usd=1.5,
        prices=Path("p.yaml"),
        retry_unscored=True,
        max_tokens=99,
        timeout=9.0,
    )
    judged = DistillRequest(
        out=Path("o"),
        dialogues=("d.jsonl",),
        judging=judging,
        rubric=Path("r.yaml"),
        examples="last-turn",
        options=DistillOptions(
            backbone="b",
            teacher="t",
            layers=3,
            effort="high",
            max_tokens=64,
            holdout=0.3,
            seed=7,
            fp16=True,
            training=TrainingOptions(epochs=5),
            fast=FastOptions(rated_examples=9),
        ),
    )
    words = words_of(
        command,
        {**TRAINING, "--labels": "l.jsonl", "--rubric": "r.yaml"},
        [*(JUDGING.keys() - {"--rubric"}), "--dry-run"],
    )
    call(command, words)
    assert seen == [judged, replace(judged, judging=None, labels=Path("l.jsonl"))]


@pytest.mark.slow  # it imports Lightning and PEFT
def test_every_flag_of_train_expert_reaches_the_request(monkeypatch):
    pytest.importorskip("peft", reason="peft is part of the experts extra")
    from efficient_empathy.experts import training
    from efficient_empathy.experts.artifact import Expert

    seen = []

    def train(request):
        seen.append(request)
        return Expert({}, {}, {}, {}, {"steps": 7})

    monkeypatch.setattr(training, "train_expert", train)
    flags = {
        "--data": "d",
        "--out": "o",
        "--base": "b",
        "--control": "random",
        "--system": "Be kind.",
        "--max-length": 64,
        "--holdout": 0.3,
        "--validation-examples": 9,
        "--lora-rank": 2,
        "--lora-alpha": 3.0,
        "--lora-dropout": 0.4,
        "--dora": True,
        "--rslora": True,
        "--epochs": 2.0,
        "--max-steps": 7,
        "--batch-size": 3,
        "--accumulate": 5,
        "--learning-rate": 1e-3,
        "--weight-decay": 0.6,
        "--validations": 8,
        "--patience": 11,
        "--gradient-checkpointing": True,
        "--device": "cpu",
        "--devices": 12,
        "--strategy": "ddp",
        "--load-in-4bit": True,
        "--seed": 13,
        "--json": True,
    }
    words = words_of(train_expert_command, flags, ["--show-batch", "--dry-run"])
    assert orjson.loads(call(train_expert_command, words))["result"] == {"steps": 7}
    options = ExpertOptions(
        base="b",
        control="random",
        system="Be kind.",
        max_tokens=64,
        holdout=0.3,
        validation_examples=9,
        seed=13,
        lora=LoraOptions(rank=2, alpha=3.0, dropout=0.4, dora=True, rslora=True),
        fit=FitOptions(
            epochs=2.0,
            max_steps=7,
            batch_size=3,
            accumulate=5,
            learning_rate=1e-3,
            weight_decay=0.6,
            validations=8,
            patience=11,
            gradient_checkpointing=True,
        ),
        where=DeviceOptions(device="cpu", devices=12, strategy="ddp", four_bit=True),
    )
    assert seen == [training.ExpertRequest(("d",), Path("o"), options)]
