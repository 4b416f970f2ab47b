"""The fast tier, end to end on a tiny transformer: what it learns, what is written, how the tiers are chosen."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.quality import spearman
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import read_manifest
from efficient_empathy.scorer import Scorer
from efficient_empathy.scorer.bench import BenchOptions, bench
from efficient_empathy.scorer.cascade import Doubts, Pairs
from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.job import Job
from efficient_empathy.scorer.summary import subsets_summary
from efficient_empathy.selection.policies import PaperPolicy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiered(tiny_bert, make_synthetic, tiny_options, tmp_path_factory):
    """A scorer folder with a fast tier that learnt from 900 of 1,200 unlabelled examples."""
    from efficient_empathy.distill.pipeline import LabelledData, distill
    from efficient_empathy.distill.rubric import Rubric
    from efficient_empathy.distill.settings import FastOptions
    from efficient_empathy.scorer.fast import FastSpec

    out = tmp_path_factory.mktemp("tiered") / "scorer"
    fast = FastOptions(rated_examples=1200, least_examples=300, epochs=8, batch_size=32, spec=FastSpec(bits=12))
    pool, _ = make_synthetic(1200, seed=5, prefix="pool")
    distill(LabelledData(*make_synthetic(240), pool), Rubric.load(), tiny_options(tiny_bert, fast=fast), out)
    return out


@pytest.fixture(scope="module")
def fresh(make_synthetic) -> list[Example]:
    return make_synthetic(600, seed=77, prefix="fresh")[0]


def test_the_fast_tier_follows_the_transformer(tiered, fresh):
    fast, transformer = (Scorer.load(tiered, device="cpu", tier=tier).score(fresh) for tier in ("fast", "transformer"))
    for column in (0, 1):
        assert spearman(fast[:, column], transformer[:, column]) > 0.5
    assert ((fast >= 0) & (fast <= 10)).all()


def test_the_folder_says_what_was_measured(tiered):
    spec, manifest = Scorer.load(tiered, device="cpu").spec, read_manifest(tiered)
    assert set(spec.tiers) == {"transformer", "fast"}
    facts = spec.parity["fast"]
    assert facts["learnt_from"] + facts["rows"] == 1200
    assert spec.cascade["rows"] == facts["rows"] == 300  # a quarter; conversations of two examples divide it evenly
    assert len(Pairs.read(tiered / "cascade.json").fast) == 300
    assert {"fast.fp32.onnx", "cascade.json"} <= set(manifest["files"])
    assert "fast tier" in spec.quality["systems"]
    assert "fast tier, a model of hashed n-grams" in (tiered / "README.md").read_text()
    assert (
        tiered / "fast.fp32.onnx"
    ).stat().st_size < 500_000  # 3 fields × 4,097 rows × 16 numbers × 2 bytes, and a little


def test_company_does_not_change_a_score(tiered, fresh):
    scorer = Scorer.load(tiered, device="cpu", tier="fast")
    together = scorer.score(fresh[:300])
    alone = np.concatenate([scorer.score([example]) for example in fresh[:20]])
    np.testing.assert_allclose(alone, together[:20], atol=1e-5)
    np.testing.assert_allclose(scorer.score(fresh[:300][::-1])[::-1], together, atol=1e-5)


def test_a_cascade_takes_each_row_from_the_tier_it_says(tiered, fresh):
    fast, transformer = (Scorer.load(tiered, device="cpu", tier=tier).score(fresh) for tier in ("fast", "transformer"))
    scorer = Scorer.load(tiered, device="cpu", tier="cascade", policy=PaperPolicy(), max_flips=0.05)
    assert scorer.tier == "cascade"
    counted: list[int] = []
    rated = scorer.rate(fresh, counted.append)
    assert sum(counted) == len(fresh)
    by = rated.by_transformer
    assert 0 < by.sum() < len(fresh)
    np.testing.assert_array_equal(rated.scores[~by], fast[~by])
    np.testing.assert_allclose(rated.scores[by], transformer[by], atol=0.011)  # int8 in other company
    pairs = Pairs.read(tiered / "cascade.json")
    doubts = Doubts(pairs, PaperPolicy(), scorer.dimensions).of(fast)
    np.testing.assert_array_equal(by, doubts > scorer.cascade.limit)
    assert scorer.cascade.flips_high <= 0.05


def test_a_cascade_travels_to_another_process(tiered, fresh):
    scorer = Scorer.load(tiered, device="cpu", tier="cascade", policy=PaperPolicy(), max_flips=0.05)
    again = pickle.loads(pickle.dumps(scorer)).with_threads(1)
    np.testing.assert_allclose(again.score(fresh[:100]), scorer.score(fresh[:100]), atol=0.011)
    assert again.cascade == scorer.cascade


def test_auto_is_the_cheapest_tier_that_keeps_the_promise(tiered):
    load = {"device": "cpu", "policy": PaperPolicy()}
    assert Scorer.load(tiered, device="cpu").tier == "transformer"
    assert Scorer.load(tiered, **load, max_flips=0.9).tier == "fast"
    assert Scorer.load(tiered, **load, max_flips=0.05).tier == "cascade"
    # 300 rows without one flip still leave 1.3 % (Wilson), so nothing can be promised.
    assert Scorer.load(tiered, **load, max_flips=0.001).tier == "transformer"


def test_a_cascade_needs_a_policy(tiered):
    with pytest.raises(EmpathyError, match="needs a policy"):
        Scorer.load(tiered, device="cpu", tier="cascade")


def test_a_scorer_without_a_fast_tier_says_how_to_get_one(distilled):
    with pytest.raises(EmpathyError, match=r"has no tier 'fast'; it has: transformer\. Distil it with --dialogues"):
        Scorer.load(distilled, device="cpu", tier="fast")
    with pytest.raises(EmpathyError, match="has no fast tier to make a cascade of"):
        Scorer.load(distilled, device="cpu", tier="cascade", policy=PaperPolicy())
    assert Scorer.load(distilled, device="cpu", policy=PaperPolicy()).tier == "transformer"


def test_a_small_pool_gives_no_fast_tier(distilled, make_synthetic, tmp_path, caplog):
    from efficient_empathy.distill.fast_tier import PoolParts, make_fast_tier
    from efficient_empathy.distill.settings import FastOptions

    caplog.set_level("INFO")
    examples = make_synthetic(60)[0]
    options = FastOptions(least_examples=41)
    parts = PoolParts(examples[:40], examples[40:])
    assert make_fast_tier(tmp_path, {}, parts, [], None, (), options, 0) is None
    assert "40 examples of them are fewer than 41" in caplog.text
    assert make_fast_tier(tmp_path, {}, PoolParts(examples, []), [], None, (), options, 0) is None
    assert "belong to one conversation" in caplog.text
    assert list(tmp_path.iterdir()) == []
    assert set(Scorer.load(distilled, device="cpu").spec.tiers) == {"transformer"}


def test_filter_says_which_tier_decided(tiered, fresh, tmp_path):
    rows = [
        {"id": e.id, "context": [{"role": t.role, "text": t.text} for t in e.context], "response": e.response}
        for e in fresh
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    scorer = Scorer.load(tiered, device="cpu", tier="cascade", policy=PaperPolicy(), max_flips=0.05)
    for name, workers in (("one", 1), ("two", 2)):
        job = Job((str(tmp_path / "rows.jsonl"),), tmp_path / name, unit_bytes=20_000, workers=workers)
        run(job, scorer, PaperPolicy())
    manifest = read_manifest(tmp_path / "one")
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()
    written = [
        json.loads(line)
        for path in sorted((tmp_path / "one").glob("*/part-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert Counter(row["ee_tier"] for row in written) == manifest["tiers"]
    assert sum(manifest["tiers"].values()) == len(fresh)
    assert manifest["scorer"]["cascade"]["max_flips"] == 0.05
    assert "decided by the fast tier: " in subsets_summary(manifest, tmp_path / "one")
    by = dict(zip([e.id for e in fresh], scorer.rate(fresh).by_transformer.tolist(), strict=True))
    assert all((row["ee_tier"] == "transformer") == by[row["id"]] for row in written)


def test_bench_measures_every_tier(tiered, fresh):
    found = bench(tiered, fresh, PaperPolicy(), BenchOptions(rounds=1, max_flips=0.05, usd_per_hour=1.0))
    by = {one.tier: one for one in found}
    assert list(by) == ["transformer", "fast", "cascade"]
    # int8 against fp32, counted here: 600 rows of which the gate, on others, lets 1 % flip (0.02: 2.5 standard errors more).
    assert by["transformer"].precision == "int8"
    scorers = [Scorer.load(tiered, "cpu", precision, "transformer") for precision in ("fp32", "int8")]
    decided = [PaperPolicy().decide(scorer.score(fresh), scorer.dimensions) for scorer in scorers]
    assert by["transformer"].flips == pytest.approx((decided[0] != decided[1]).mean(), abs=0.002)
    assert by["transformer"].flips < 0.02
    assert by["fast"].tokens_per_second is None
    assert 0 < by["cascade"].fast_share < 1
    assert by["cascade"].flips < by["fast"].flips


def test_a_pool_of_one_conversation_gives_no_fast_tier(distilled, make_synthetic, tmp_path, caplog):
    from efficient_empathy.distill.fast_tier import PoolParts, make_fast_tier
    from efficient_empathy.distill.settings import FastOptions

    examples, _ = make_synthetic(40)
    options = FastOptions(rated_examples=40, least_examples=10)
    caplog.set_level("INFO")
    parts = PoolParts(examples, [])  # the last conversation is never kept apart
    assert make_fast_tier(tmp_path, {"fp32": "transformer.fp32.onnx"}, parts, [], None, (), options, 0) is None
    assert "belong to one conversation" in caplog.text


def test_a_larger_pool_is_cut_to_what_was_asked_for(make_synthetic, monkeypatch, tmp_path, caplog):
    from efficient_empathy.distill import fast_tier
    from efficient_empathy.distill.settings import FastOptions

    class EnoughError(Exception):
        pass

    def rate(model, examples, backbone):
        rated.extend(examples)
        raise EnoughError

    rated: list[Example] = []
    monkeypatch.setattr(fast_tier, "_rate", rate)
    examples, _ = make_synthetic(400)
    parts = fast_tier.PoolParts(examples[:300], examples[300:])
    files = {"fp32": "transformer.fp32.onnx"}
    with pytest.raises(EnoughError):
        options = FastOptions(rated_examples=200, least_examples=150)
        fast_tier.make_fast_tier(tmp_path, files, parts, [], None, (), options, 0)
    assert rated == [*examples[:150], *examples[300:350]]
    caplog.set_level("INFO")
    options = FastOptions(rated_examples=200, least_examples=151)
    assert fast_tier.make_fast_tier(tmp_path, files, parts, [], None, (), options, 0) is None
    assert "150 examples of them are fewer than 151" in caplog.text
