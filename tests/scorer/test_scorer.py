"""``Scorer``: the same score for an example in whatever company, process or batch."""

import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import write_manifest
from efficient_empathy.scorer import Scorer, tiers, workers
from efficient_empathy.scorer import scorer as scorers
from efficient_empathy.scorer.artifact import KIND, write_spec
from efficient_empathy.scorer.job import Job
from efficient_empathy.scorer.workers import plan_workers
from efficient_empathy.selection import PaperPolicy


def count_example(context_words: int, response_words: int) -> Example:
    return Example("e", "d", 1, (Turn("speaker", "a " * context_words),), "b " * response_words)


@pytest.fixture
def counter(scorer_folder):
    return Scorer.load(scorer_folder, device="cpu")


def test_scores_by_hand(counter):
    # Score 0: words of the response + 2. Score 1: CLS, SEP and the context's role and words.
    scores = counter.score([count_example(3, 1), count_example(1, 6)])
    assert scores.tolist() == [[3.0, 6.0], [8.0, 4.0]]
    assert scores.dtype == np.float32


def test_long_inputs_lose_their_oldest_context(counter):
    # 64 tokens at most: 3 of the frame, 11 of the response, so 50 of the context: 52 with CLS and SEP.
    assert counter.score([count_example(500, 10)]).tolist() == [[12.0, 52.0]]
    # The response alone is too long: 61 of it and the last SEP; CLS and SEP are before it.
    assert counter.score([count_example(500, 500)]).tolist() == [[62.0, 2.0]]


def test_what_it_says_of_itself(counter):
    assert counter.dimensions == ("sensibility", "rationality")
    assert counter.scales == {"sensibility": (0.0, 10.0), "rationality": (0.0, 10.0)}
    assert (counter.tier, counter.precision, counter.providers) == ("transformer", "fp32", ["CPUExecutionProvider"])
    assert len(counter.digest) == 64


def test_no_examples(counter):
    calls = []
    assert counter.score([], calls.append).shape == (0, 2)
    assert calls == []


def test_progress_adds_up_to_the_rows(counter):
    calls = []
    counter.score([count_example(40, n % 20) for n in range(150)], calls.append)
    assert sum(calls) == 150
    assert len(calls) > 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "int8"}, "has no precision 'int8' in tier 'transformer'; it has: fp32"),
        ({"precision": "fp16"}, "has no precision 'fp16'"),
        ({"tier": "fast"}, "has no tier 'fast'; it has: transformer"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda"),
    ],
)
def test_what_is_not_there_is_said_at_load(scorer_folder, option, message):
    with pytest.raises(EmpathyError, match=message):
        Scorer.load(scorer_folder, **option)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this build of ONNX Runtime has CUDA"
)
def test_cuda_is_refused_at_load_and_auto_takes_the_cpu(scorer_folder):
    with pytest.raises(EmpathyError, match="--device cuda"):
        Scorer.load(scorer_folder, device="cuda")
    assert Scorer.load(scorer_folder).providers == ["CPUExecutionProvider"]


@pytest.fixture
def every_precision(scorer_folder, tmp_path):
    """A scorer folder with a file of each precision; all count tokens."""
    folder = shutil.copytree(scorer_folder, tmp_path / "every")
    files = {precision: f"transformer.{precision}.onnx" for precision in ("fp32", "fp16", "int8")}
    for name in files.values():
        shutil.copy(scorer_folder / files["fp32"], folder / name)
    write_spec(folder, replace(Scorer.load(scorer_folder, device="cpu").spec, tiers={"transformer": files}))
    write_manifest(folder, KIND, {}, ["scorer.json", "tokenizer.json", *files.values()])
    return folder


def offer_cuda_that_does_not_start(monkeypatch):
    """As where the build has CUDA and the machine no driver: the session comes up on the CPU."""
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, providers, **_: real(path, options, [offered[1]])
    )


def test_auto_is_the_cpu_in_all_respects_where_cuda_is_offered_and_does_not_start(
    every_precision, tmp_path, monkeypatch, caplog
):
    offer_cuda_that_does_not_start(monkeypatch)
    monkeypatch.setattr(workers, "usable_cores", lambda: 4)
    monkeypatch.setattr(tiers, "usable_cores", lambda: 4)
    scorer = Scorer.load(every_precision)
    assert (scorer.precision, scorer.device, scorer.providers) == ("int8", "cpu", ["CPUExecutionProvider"])
    assert scorer._tiers["transformer"]._side_by_side == 4
    assert plan_workers(Job(("a.jsonl",), tmp_path, workers="auto"), scorer, 100).workers == 4
    assert caplog.text.count("CUDA is offered by ONNX Runtime but did not start") == 1
    # In the processes that it travels to as well; and who names a precision has it.
    assert pickle.loads(pickle.dumps(scorer)).device == "cpu"
    assert Scorer.load(every_precision, precision="fp16").precision == "fp16"
    with pytest.raises(EmpathyError, match=r"--device cuda: .* did not start"):
        Scorer.load(every_precision, device="cuda")


def test_auto_is_the_gpu_where_it_starts(every_precision, monkeypatch):
    offer_cuda_that_does_not_start(monkeypatch)
    monkeypatch.setattr(scorers, "on_gpu", lambda session: True)  # as if it had
    scorer = Scorer.load(every_precision)
    assert (scorer.precision, scorer.device) == ("fp16", "cuda")


@pytest.mark.parametrize("used_before", [False, True])
def test_pickled_it_scores_the_same(counter, used_before):
    examples = [count_example(3, 1)]
    if used_before:
        counter.score(examples)
    copy = pickle.loads(pickle.dumps(counter))
    assert copy.digest == counter.digest
    assert copy.score(examples).tolist() == counter.score(examples).tolist()


@pytest.mark.slow
def test_it_travels_to_a_fresh_process(distilled, make_synthetic):
    examples, _ = make_synthetic(20, seed=5)
    scorer = Scorer.load(distilled, device="cpu", threads=1)
    here = scorer.score(examples)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        there = processes.submit(Scorer.score, scorer, examples).result(120)
    assert there.tobytes() == here.tobytes()


@pytest.fixture(scope="module")
def varied(make_synthetic):
    """Examples whose lengths differ, so that batches are padded."""
    examples, _ = make_synthetic(60, seed=9)
    return [Example(e.id, e.dialogue_id, e.turn, e.context[: n % 4], e.response) for n, e in enumerate(examples)]


@pytest.mark.slow
def test_batched_equals_one_by_one_in_fp32(distilled, varied):
    scorer = Scorer.load(distilled, device="cpu", precision="fp32")
    together = scorer.score(varied)
    alone = np.concatenate([scorer.score([example]) for example in varied])
    assert np.abs(together - alone).max() <= 1e-5
    assert together.std(0).min() > 0.1


@pytest.mark.slow
def test_order_and_company_do_not_matter(distilled, varied):
    scorer = Scorer.load(distilled, device="cpu", precision="fp32")
    together = scorer.score(varied)
    order = np.random.default_rng(0).permutation(len(varied))
    assert np.abs(scorer.score([varied[i] for i in order]) - together[order]).max() <= 1e-5
    assert np.abs(scorer.score(varied[:7]) - together[:7]).max() <= 1e-5
    twice = scorer.score([*varied, *varied])
    assert np.abs(twice - np.concatenate([together, together])).max() <= 1e-5


@pytest.mark.slow
def test_loaded_twice_it_gives_the_same_bits(distilled, varied):
    first, second = (Scorer.load(distilled, device="cpu", threads=1).score(varied) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_int8_is_taken_on_the_cpu_where_the_folder_has_it(every_precision, scorer_folder):
    # Whether a tiny student's int8 file passes the gate depends on the threads it was trained with: this folder has one.
    scorer = Scorer.load(every_precision, device="cpu")
    assert "int8" in scorer.spec.tiers["transformer"]
    assert (scorer.precision, scorer._tiers["transformer"]._model) == ("int8", "transformer.int8.onnx")
    assert Scorer.load(every_precision, device="cpu", precision="fp32").precision == "fp32"
    other = Scorer.load(scorer_folder, device="cpu")
    assert "int8" not in other.spec.tiers["transformer"]
    assert other.precision == "fp32"


def test_auto_with_a_policy_that_does_not_fit_says_so(other_scorer_folder):
    scorer = Scorer.load(other_scorer_folder)
    scorer.spec = replace(
        scorer.spec, tiers={**scorer.spec.tiers, "fast": {}}, cascade={"file": "cascade.json", "rows": 300}
    )
    with pytest.raises(EmpathyError, match="has: warmth, clarity"):
        scorer._cascading("auto", PaperPolicy(), 0.05)
