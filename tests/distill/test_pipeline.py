"""The whole way from labels to a scorer folder, on a tiny encoder."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import changed_files, read_manifest, sha256_file
from efficient_empathy.scorer import Scorer
from efficient_empathy.selection.commands import filter_command

pytest.importorskip("torch", reason="torch is part of the distill extra")
FRAME = {"scorer.json", "tokenizer.json", "README.md", "manifest.json", "transformer.fp32.onnx"}

WITHOUT_TORCH = """
import json, sys

class Refuse:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in {"torch", "transformers", "lightning", "optimum", "sklearn"}:
            raise ModuleNotFoundError(f"{name} must not be needed", name=name)

sys.meta_path.insert(0, Refuse())
from efficient_empathy import Scorer
from efficient_empathy.dialogues.types import Example, Turn

scorer = Scorer.load(sys.argv[1], device="cpu", precision="fp32", threads=1)
print(json.dumps(scorer.score([Example("e", "d", 1, (Turn("speaker", "my dog died"),), "so sorry")]).tolist()))
"""


def run_pipeline(examples, scores, out, options, rubric=None, pool=()):
    from efficient_empathy.distill.pipeline import LabelledData, distill

    return distill(LabelledData(examples, scores, pool), rubric or Rubric.load(), options, out)


@pytest.mark.slow
def test_the_folder_is_whole_and_its_hashes_hold(distilled):
    names = {path.name for path in distilled.iterdir()}
    assert names - {"transformer.int8.onnx"} == FRAME
    manifest = read_manifest(distilled, "scorer")
    assert set(manifest["files"]) == names - {"manifest.json"}
    assert changed_files(distilled) == []
    for name, digest in manifest["files"].items():
        assert sha256_file(distilled / name) == digest
    # Neither the scratch folder nor that of the stages is left.
    assert [path.name for path in distilled.parent.iterdir()] == [distilled.name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_an_encoder_that_multiplies_more_than_its_rows_gets_int8_too(
    tiny_deberta, make_synthetic, tiny_options, tmp_path
):
    # 400 labels, so that over 100 are held out: of fewer rows a single flip is more than the gate allows.
    facts = run_pipeline(*make_synthetic(400), tmp_path / "scorer", tiny_options(tiny_deberta, epochs=4))
    assert facts is not None
    parity = orjson.loads((tmp_path / "scorer" / "scorer.json").read_bytes())["parity"]
    assert parity["int8"]["passed"]
    assert (tmp_path / "scorer" / "transformer.int8.onnx").is_file()


@pytest.mark.slow
def test_counts_add_up(distilled):
    manifest, spec = read_manifest(distilled), Scorer.load(distilled, device="cpu").spec
    labels = manifest["labels"]
    assert labels["examples"] == 240 == labels["trained_on"] + labels["held_out"]
    assert labels["held_out"] == spec.quality["rows"] == 72  # 0.3 of 240, in conversations of two
    assert spec.quality["conversations"] == 36
    assert manifest["options"]["seed"] == 0
    assert manifest["rubric"]["dimensions"][0]["name"] == "sensibility"
    assert spec.rubric["sha256"] == Rubric.load().digest


@pytest.mark.slow
def test_it_is_better_than_the_mean(distilled):
    quality = Scorer.load(distilled, device="cpu").spec.quality
    assert list(quality["systems"]) == ["scorer", "frozen encoder + linear", "TF-IDF + ridge", "mean"]
    ours, mean = quality["systems"]["scorer"], quality["systems"]["mean"]
    for dimension in ("sensibility", "rationality"):
        assert ours[f"spearman/{dimension}"]["low"] > mean[f"spearman/{dimension}"]["value"] == 0
        assert ours[f"mae/{dimension}"]["value"] < mean[f"mae/{dimension}"]["value"]
    for figure in ours.values():
        assert figure["low"] <= figure["value"] <= figure["high"]


@pytest.mark.slow
def test_it_scores_new_examples_on_the_judge_s_scale(distilled, make_synthetic):
    from efficient_empathy.distill.quality import spearman

    examples, expected = make_synthetic(80, seed=42, prefix="new")
    found = Scorer.load(distilled, device="cpu").score(examples)
    assert found.min() >= 0
    assert found.max() <= 10
    for column in (0, 1):
        assert spearman(found[:, column], expected[:, column]) > 0.5
    np.testing.assert_allclose(found.std(0), expected.std(0), rtol=0.35)


@pytest.mark.slow
def test_it_loads_without_torch(distilled, make_synthetic):
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(distilled)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    scores = np.array(json.loads(run.stdout))
    assert scores.shape == (1, 2)
    assert ((scores >= 0) & (scores <= 10)).all()


@pytest.mark.slow
def test_the_card_says_what_was_measured(distilled):
    card = (distilled / "README.md").read_text()
    quality = Scorer.load(distilled, device="cpu").spec.quality
    figure = quality["systems"]["scorer"]["spearman/sensibility"]
    assert f"| spearman sensibility | {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}] |" in card
    assert "168 labelled examples trained on, 72 held out" in card
    assert "sensibility (0 to 10), rationality (0 to 10)" in card


@pytest.mark.slow
def test_no_path_of_this_machine_goes_along(distilled, tiny_bert):
    assert read_manifest(distilled)["options"]["backbone"] == "tiny-bert"
    assert "starting from the encoder `tiny-bert`" in (distilled / "README.md").read_text()
    for name in ("manifest.json", "README.md", "scorer.json"):
        assert str(tiny_bert.parent) not in (distilled / name).read_text()


def test_a_model_is_named_without_its_path(tiny_bert, monkeypatch):
    from efficient_empathy.distill.pipeline import _public_name

    assert [_public_name(name) for name in (str(tiny_bert), f"{tiny_bert}/")] == ["tiny-bert", "tiny-bert"]
    assert [_public_name(name) for name in ("minilm", "org/encoder")] == ["minilm", "org/encoder"]
    monkeypatch.chdir(tiny_bert.parent)
    assert _public_name("./tiny-bert") == _public_name("tiny-bert/../tiny-bert") == "tiny-bert"


@pytest.mark.slow
def test_the_card_s_own_lines_of_python_run(distilled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"id": "a", "context": "my dog died", "response": "so sorry"}
    (tmp_path / "raw.jsonl").write_bytes(orjson.dumps(row))
    code = (distilled / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code.replace("this folder", str(distilled)), names)
    assert names["scores"].shape == (1, 2)


@pytest.mark.slow
def test_the_same_labels_and_seed_give_the_same_scorer(tiny_bert, make_synthetic, tiny_options, tmp_path):
    examples, scores = make_synthetic(60)
    for name in ("first", "second"):
        run_pipeline(examples, scores, tmp_path / name, tiny_options(tiny_bert, epochs=2))
    first, second = (Scorer.load(tmp_path / name, device="cpu", threads=1) for name in ("first", "second"))
    assert first.score(examples).tobytes() == second.score(examples).tobytes()
    assert first.digest == second.digest


@pytest.mark.slow
def test_an_encoder_without_token_types_goes_all_the_way(tiny_roberta, make_synthetic, tiny_options, tmp_path):
    examples, scores = make_synthetic(60)
    spec = run_pipeline(examples, scores, tmp_path / "out", tiny_options(tiny_roberta, epochs=2))
    assert spec.parity["fp32"]["largest_difference"] <= 1e-4
    assert Scorer.load(tmp_path / "out", device="cpu").score(examples).shape == (60, 2)


def rubric_of(*names: str) -> Rubric:
    dimensions = [{"name": name, "low": 1, "high": 9, "description": f"How {name} it is."} for name in names]
    return Rubric.from_dict({"name": "own", "instructions": "Rate.", "dimensions": dimensions})


@pytest.mark.slow
@pytest.mark.parametrize("names", [("warmth",), ("warmth", "thought", "sum")])
def test_another_rubric_goes_all_the_way_to_the_filter(names, tiny_bert, make_synthetic, tiny_options, tmp_path):
    examples, scores = make_synthetic(80)
    scores = np.column_stack([scores, scores.mean(1)])[:, : len(names)]
    out = tmp_path / "scorer"
    spec = run_pipeline(examples, scores, out, tiny_options(tiny_bert, epochs=4), rubric_of(*names))
    assert [(d.name, d.low, d.high) for d in spec.dimensions] == [(name, 1.0, 9.0) for name in names]
    assert spec.quality["decision"] == "above or below each scale's middle"
    rows = [{"id": e.id, "context": e.context[0].text, "response": e.response} for e in examples]
    (tmp_path / "in.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    words = ["--scorer", out, tmp_path / "in.jsonl", "-o", tmp_path / "subsets", "--keep", "warm=warmth>5", "--json"]
    result = CliRunner().invoke(filter_command, [str(word) for word in words], catch_exceptions=False)
    subsets = orjson.loads(result.stdout)["subsets"]
    kept = subsets["warm"]["examples"]
    assert kept + subsets["discarded"]["examples"] == 80
    assert 0 < kept < 80
    part = (tmp_path / "subsets" / "warm" / "part-00000.jsonl").read_bytes().splitlines()
    assert all(orjson.loads(line)["ee_warmth"] > 5 for line in part)
    assert set(orjson.loads(part[0])) >= {f"ee_{name}" for name in names}


def other_turns(*conversations: str) -> list[Example]:
    """One unlabelled example of each conversation."""
    return [Example(f"{name}_turn:9", name, 9, (Turn("speaker", name),), "Oh.") for name in conversations]


@pytest.fixture
def labelled_split(make_synthetic):
    """Eight labels of conversations c0 to c3, of which c1 is held out."""
    from efficient_empathy.distill.students import Split

    examples, scores = make_synthetic(8)
    return Split(examples, scores, np.array([0, 1, 4, 5, 6, 7]), np.array([2, 3]))


def test_of_the_pool_nothing_that_was_trained_on_is_unseen(labelled_split, tiny_bert, tiny_options):
    from efficient_empathy.distill.batches import split_by_conversation
    from efficient_empathy.distill.pipeline import pool_parts
    from efficient_empathy.distill.settings import FastOptions

    names = [f"c{n % 4}" if n % 2 else f"p{n}" for n in range(80)]
    pool = other_turns(*names)
    for seed in range(10):
        options = tiny_options(tiny_bert, seed=seed, fast=FastOptions(rated_examples=80, least_examples=20))
        parts = pool_parts(pool, labelled_split, options)
        assert not {"c0", "c2", "c3"} & {example.dialogue_id for example in parts.unseen}
        # Of c1, which is held out, nothing is learnt: its 20 rows (n = 1, 5, …) are compared on.
        assert "c1" not in {example.dialogue_id for example in parts.learnt}
        assert sum(example.dialogue_id == "c1" for example in parts.unseen) == 20
        assert not {id(example) for example in parts.learnt} & {id(example) for example in parts.unseen}
        # All else is where it was drawn to.
        learnt, unseen = (set(rows.tolist()) for rows in split_by_conversation(names, 0.25, seed))
        assert [e for e in parts.learnt if e.dialogue_id[0] == "p"] == [
            pool[n] for n in range(80) if names[n][0] == "p" and n in learnt
        ]
        assert [e for e in parts.unseen if e.dialogue_id[0] == "p"] == [
            pool[n] for n in range(80) if names[n][0] == "p" and n in unseen
        ]
    # Where nothing is learnt from the pool, what the files are compared on is chosen alike.
    options = tiny_options(tiny_bert, fast=FastOptions(rated_examples=0))
    parts = pool_parts(pool, labelled_split, options)
    assert list(parts.learnt) == []
    assert parts.unseen == [e for e in pool if e.dialogue_id not in ("c0", "c2", "c3")]


def test_a_pool_of_other_conversations_is_divided_as_it_is_drawn(labelled_split, tiny_bert, tiny_options):
    from efficient_empathy.distill.batches import split_by_conversation
    from efficient_empathy.distill.pipeline import pool_parts
    from efficient_empathy.distill.settings import FastOptions

    pool = other_turns(*[f"p{n % 30}" for n in range(80)])
    options = tiny_options(tiny_bert, fast=FastOptions(rated_examples=80, least_examples=20))
    parts = pool_parts(pool, labelled_split, options)
    learnt, unseen = split_by_conversation([e.dialogue_id for e in pool], 0.25, options.seed)
    assert (parts.learnt, parts.unseen) == ([pool[n] for n in learnt], [pool[n] for n in unseen])


def test_too_few_labels(tiny_bert, make_synthetic, tiny_options, tmp_path):
    with pytest.raises(EmpathyError, match="10 labelled examples are too few"):
        run_pipeline(*make_synthetic(10), tmp_path / "out", tiny_options(tiny_bert))
    assert list(tmp_path.iterdir()) == []


def test_too_few_conversations(tiny_bert, make_synthetic, tiny_options, tmp_path):
    from efficient_empathy.distill.batches import split_by_conversation

    examples, scores = make_synthetic(60)
    few = [dataclasses.replace(e, dialogue_id=f"c{n % 3}") for n, e in enumerate(examples)]
    with pytest.raises(EmpathyError, match="fewer than 4 conversations"):
        run_pipeline(few, scores, tmp_path / "out", tiny_options(tiny_bert))
    # The tenth conversation holds 51 of the 60 examples; a seed that holds it out leaves 8 to train on.
    skewed = [dataclasses.replace(e, dialogue_id=f"c{min(n, 9)}") for n, e in enumerate(examples)]
    groups = [example.dialogue_id for example in skewed]
    seed = next(seed for seed in range(99) if len(split_by_conversation(groups, 0.3, seed, least=2)[0]) < 20)
    with pytest.raises(EmpathyError, match="a few conversations hold most of them"):
        run_pipeline(skewed, scores, tmp_path / "out", tiny_options(tiny_bert, seed=seed))


def test_labels_that_do_not_vary(tiny_bert, make_synthetic, tiny_options, tmp_path):
    examples, scores = make_synthetic(60)
    scores[:, 1] = 7
    with pytest.raises(EmpathyError, match=r"every label has the same rationality \(7\)"):
        run_pipeline(examples, scores, tmp_path / "out", tiny_options(tiny_bert))


def test_an_output_that_is_there_already_stays_as_it_is(tiny_bert, make_synthetic, tiny_options, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(EmpathyError, match=r"out' is already there\. Choose another folder"):
        run_pipeline(*make_synthetic(60), tmp_path / "out", tiny_options(tiny_bert))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_place_that_cannot_be_written_to_is_said_before_training(tiny_bert, make_synthetic, tiny_options, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(EmpathyError, match=r"cannot write to '.*file'"):
        run_pipeline(*make_synthetic(60), tmp_path / "file" / "out", tiny_options(tiny_bert))


def test_what_a_killed_run_left_is_cleared_away(tiny_bert, make_synthetic, tiny_options, tmp_path):
    left, other = tmp_path / ".scorer.abcdefgh.unfinished", tmp_path / ".scorer.yaml"
    left.mkdir()
    (left / "tokenizer.json").write_text("{}")
    other.write_text("mine")
    with pytest.raises(EmpathyError, match="too few"):
        run_pipeline(*make_synthetic(3), tmp_path / "scorer", tiny_options(tiny_bert))
    assert list(tmp_path.iterdir()) == [other]


def test_high_effort_needs_a_pool(tiny_bert, make_synthetic, tiny_options, tmp_path):
    examples, scores = make_synthetic(60)
    with pytest.raises(EmpathyError, match="--effort high learns from unlabelled dialogues too"):
        run_pipeline(examples, scores, tmp_path / "out", tiny_options(tiny_bert, effort="high"))


def test_an_unknown_backbone(make_synthetic, tiny_options, tmp_path):
    with pytest.raises(EmpathyError, match="neither a folder with a model nor a model the Hub has"):
        run_pipeline(*make_synthetic(60), tmp_path / "out", tiny_options(tmp_path / "no-such-encoder"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("flips", "precision"), [(0.01, "int8"), (0.011, "fp32")])
def test_an_int8_file_is_shipped_only_if_it_passed(
    tiny_bert, make_synthetic, tiny_options, tmp_path, monkeypatch, caplog, flips, precision
):
    from efficient_empathy.distill import pipeline
    from efficient_empathy.distill.quantise import Int8Parity

    def quantised(fp32, int8, *rest):
        parity = Int8Parity(rows=18, spearman=(1.0, 0.99), flips=flips, batch_effect=0.01, kept_fp32=())
        if parity.passed:  # else there is no file, as it promises
            shutil.copy(fp32, int8)
        return parity

    monkeypatch.setattr(pipeline, "quantise", quantised)
    out, shipped = tmp_path / "out", {"transformer.int8.onnx"} if precision == "int8" else set()
    spec = run_pipeline(*make_synthetic(60), out, tiny_options(tiny_bert, epochs=1))
    files = {name: f"transformer.{name}.onnx" for name in ("fp32", "int8") if name in ("fp32", precision)}
    assert spec.tiers == {"transformer": files}
    assert {path.name for path in out.iterdir()} == FRAME | shipped
    assert set(read_manifest(out)["files"]) == (FRAME | shipped) - {"manifest.json"}
    assert (spec.parity["int8"]["flips"], spec.parity["int8"]["passed"]) == (flips, bool(shipped))
    assert Scorer.load(out, device="cpu").precision == precision
    assert ("no int8 file: its Spearman with fp32 is 0.9900" in caplog.text) == (not shipped)


@pytest.mark.slow
def test_a_failed_export_leaves_nothing(tiny_bert, make_synthetic, tiny_options, tmp_path, monkeypatch):
    from efficient_empathy.distill import export

    monkeypatch.setattr(export, "_FP32_TOLERANCE", -1.0)
    with pytest.raises(EmpathyError, match="the scorer was not written"):
        run_pipeline(*make_synthetic(60), tmp_path / "out", tiny_options(tiny_bert, epochs=1))
    assert list(tmp_path.iterdir()) == []
