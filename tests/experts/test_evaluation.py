"""Comparing saved answers: what is refused, what is found, what is warned of, what is written."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from efficient_empathy.distill.labels import load_labelled
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.evaluate_commands import evaluate_command
from efficient_empathy.experts.evaluation import EvaluateOptions, evaluate
from efficient_empathy.experts.evaluation_files import named_folders, write_evaluation
from efficient_empathy.experts.metrics import nltk_bleu
from efficient_empathy.experts.tables import text_report
from efficient_empathy.manifest import changed_files, read_manifest, write_manifest

ROWS = 24
FEW = EvaluateOptions(resamples=100)


def write_answers(folder, answer, rows=ROWS, renderer=None, **changes):
    """An answers folder of two rows a conversation; ``answer`` gives the text of a row."""
    folder.mkdir(parents=True)
    lines = [
        {
            "id": f"r{row}",
            "dialogue_id": f"c{row // 2}",
            "context": [{"role": "speaker", "text": f"My dog number {row} died."}],
            "reference": f"I am so sorry about dog {row}.",
            "answer": answer(row),
            "tokens": 3,
            "finish": "length" if row == 0 else "end",
            "nll": 2.0,
            "nll_tokens": 4,
            **changes,
        }
        for row in range(rows)
    ]
    (folder / "answers.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    body = {"renderer": renderer or {"template_hash": "one"}, "options": {"max_new_tokens": 40, "seed": 0}}
    write_manifest(folder, "answers", {"model": {"kind": "base"}, **body}, ["answers.jsonl"])
    return folder


def said(row):
    return f"yes {row} I do"


class WordScorer:
    """Scores the number of words and whether the answer asks; counts how many it was shown."""

    digest, precision = "d" * 64, "fp32"
    dimensions = ("length", "asking")

    def __init__(self):
        self.shown = 0
        self.scales = {"length": (0.0, 10.0), "asking": (0.0, 1.0)}

    def score(self, examples):
        """(n, 2), and a check that each answer comes with its context."""
        self.shown += len(examples)
        assert all(example.context[0].text.startswith("My dog") for example in examples)
        return np.array([[len(e.response.split()), "?" in e.response] for e in examples], np.float32)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_answers(tmp_path / "base", said)


def test_figures_and_a_constant_difference(base, tmp_path):
    other = write_answers(tmp_path / "other", lambda row: said(row) + " too")
    found = evaluate({"base": [base], "other": [other]}, FEW)
    assert (found.rows, found.conversations) == (24, 12)
    assert found.figures["base"]["words"].figure.value == 4
    assert found.figures["reference"]["words"].figure.value == 7
    assert found.figures["base"]["perplexity"].figure.value == pytest.approx(np.exp(2 / 4))
    assert found.figures["base"]["cut_rate"].figure.value == pytest.approx(100 / 24)
    assert "perplexity" not in found.figures["reference"]
    assert "bleu1_nltk_m1" not in found.figures["reference"]
    by_name = {comparison.metric: comparison for comparison in found.comparisons}
    words = by_name["words"]
    assert (words.difference.low, words.difference.value, words.difference.high) == pytest.approx((1, 1, 1))
    assert words.p == pytest.approx(1 / 101)
    assert by_name["perplexity"].p == by_name["perplexity"].holm == 1
    assert {comparison.system for comparison in found.comparisons} == {"other"}


def test_p_values_are_corrected_for_the_number_of_comparisons(base, tmp_path):
    other = write_answers(tmp_path / "other", lambda row: said(row) + " too")
    options = EvaluateOptions(resamples=100, compare=("words", "perplexity"))
    found = evaluate({"base": [base], "other": [other]}, options)
    # The smaller of two is doubled, the larger stays.
    corrected = {comparison.metric: (comparison.p, comparison.holm) for comparison in found.comparisons}
    assert corrected == {"words": pytest.approx((1 / 101, 2 / 101)), "perplexity": (1, 1)}


def test_seeds_are_averaged_and_their_spread_is_kept(base, tmp_path):
    seeds = [
        write_answers(tmp_path / f"s{seed}", lambda row, seed=seed: said(row) + " so" * seed) for seed in (0, 1, 5)
    ]
    options = EvaluateOptions(resamples=50, compare=("words",))
    found = evaluate({"base": [base], "expert": seeds}, options)
    figure = found.figures["expert"]["words"]
    assert figure.seeds == (4, 5, 9)
    assert figure.figure.value == pytest.approx(6)
    (comparison,) = found.comparisons
    assert comparison.difference.value == pytest.approx(2)
    assert (comparison.seed_low, comparison.seed_high) == (0, 5)
    assert comparison.holm == comparison.p
    report = text_report(found)
    assert "4.00 to 9.00 (2.65)" in report  # deviations -2, -1, 3: sqrt(14 / 2)
    assert "+0.00 to +5.00" in report


def test_tables_fit_a_terminal_whatever_the_number_of_systems(base):
    found = evaluate(
        {f"system-{number}": [base] for number in range(7)}, EvaluateOptions(resamples=20, compare=("words",))
    )
    report = text_report(found)
    lines = [line for line in report.splitlines() if not line.startswith(("!", "24 answers"))]
    assert max(map(len, lines)) <= 110
    heads = [line.split() for line in lines if line.startswith(" ") and "system-" in line]
    # Four families, each in blocks of columns that together name every system once.
    names = [name for head in heads for name in head if name.startswith("system-")]
    assert sorted(names) == sorted(f"system-{number}" for number in range(7) for _ in range(4))


def test_scorers_judge_the_answers_and_the_people_but_not_silence(tmp_path):
    quiet = write_answers(tmp_path / "quiet", lambda row: " " if row < 6 else said(row))
    scorer = WordScorer()
    found = evaluate({"quiet": [quiet]}, FEW, {"words": scorer})
    assert found.figures["quiet"]["words/length"].figure.value == 4  # of the 18 that say something
    assert found.figures["quiet"]["words/length"].rows == 18
    assert found.figures["reference"]["words/length"].figure.value == 7
    assert found.figures["quiet"]["empty_rate"].figure.value == 25
    assert scorer.shown == 18 + 24
    assert any("6 of 24 answers of 'quiet' are empty" in warning for warning in found.warnings)
    assert found.families["scorer words"] == ("words/length", "words/asking")


def test_without_references_what_needs_them_is_left_out(tmp_path):
    alone = write_answers(tmp_path / "alone", said, reference=None, nll=None, nll_tokens=None)
    found = evaluate({"alone": [alone]}, FEW)
    assert set(found.figures) == {"alone"}
    assert not {"perplexity", "sacrebleu", "rouge1_f1"} & set(found.figures["alone"])
    assert found.figures["alone"]["words"].rows == 24


def test_rows_may_come_in_another_order(base, tmp_path):
    order = list(range(ROWS))[::-1]
    turned = write_answers(tmp_path / "turned", said)
    lines = (turned / "answers.jsonl").read_bytes().splitlines()
    (turned / "answers.jsonl").write_bytes(b"\n".join(lines[row] for row in order))
    write_manifest(turned, "answers", {}, ["answers.jsonl"])
    found = evaluate({"base": [base], "turned": [turned]}, FEW)
    assert all(comparison.difference.value == 0 and comparison.p == 1 for comparison in found.comparisons)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 20}, "4 of 24 ids are missing"),
        ({"reference": "Another."}, "24 rows differ"),
        ({"context": []}, "24 rows differ"),
        ({"id": "same"}, "holds the id 'same' twice"),
        ({"rows": 0}, "holds no answers"),
    ],
)
def test_what_cannot_be_compared_is_refused(base, tmp_path, change, message):
    other = write_answers(tmp_path / "other", said, **change)
    with pytest.raises(EmpathyError, match=message):
        evaluate({"base": [base], "other": [other]}, FEW)


def test_changed_answers_are_refused(base):
    with open(base / "answers.jsonl", "ab") as file:
        file.write(b"\n")
    with pytest.raises(EmpathyError, match=r"is not as it was written: 'answers.jsonl' has changed"):
        evaluate({"base": [base]}, FEW)


def test_a_row_without_a_field_is_named(base):
    (base / "answers.jsonl").write_bytes(b'{"id": "x"}\n')
    write_manifest(base, "answers", {}, ["answers.jsonl"])
    with pytest.raises(EmpathyError, match="line 1 is no row of answers"):
        evaluate({"base": [base]}, FEW)


def test_unknown_names_and_options_are_refused(base):
    with pytest.raises(EmpathyError, match="no system 'x' to be the baseline; there are: base"):
        evaluate({"base": [base]}, EvaluateOptions(baseline="x"))
    with pytest.raises(EmpathyError, match="no figure is called 'beauty'"):
        evaluate({"base": [base]}, EvaluateOptions(resamples=20, compare=("beauty",)))
    with pytest.raises(EmpathyError, match="cannot be called 'reference'"):
        evaluate({"reference": [base]}, FEW)
    with pytest.raises(EmpathyError, match="resamples must be from 20"):
        EvaluateOptions(resamples=3)
    with pytest.raises(EmpathyError, match="no answers folder was given"):
        evaluate({}, FEW)


def test_what_makes_a_comparison_mean_less_is_said(base, tmp_path):
    other = write_answers(tmp_path / "other", said, renderer={"template_hash": "two"}, nll_tokens=9)
    manifest = read_manifest(other)
    trained = {"model": {"data": {"scorer": WordScorer.digest}}, "options": {"max_new_tokens": 80, "seed": 7}}
    write_manifest(other, "answers", {"renderer": manifest["renderer"], **trained}, ["answers.jsonl"])
    found = evaluate({"base": [base], "other": [other]}, FEW, {"words": WordScorer()})
    text = "\n".join(found.warnings)
    assert "'other' and 'base' were prompted differently (template_hash)" in text
    assert "'other' and 'base' were generated differently (max_new_tokens)" in text
    assert "their perplexities cannot be compared, bits per byte can" in text
    assert "other (other) gave the same answers as base (base), word for word" in text
    assert "scorer 'words' chose the training data of other" in text
    assert "only 12 conversations" in text
    # A control drew from all subsets: the scorer that split them chose nothing of it.
    trained["model"]["control"] = "random"
    write_manifest(other, "answers", {"renderer": manifest["renderer"], **trained}, ["answers.jsonl"])
    text = "\n".join(evaluate({"base": [base], "other": [other]}, FEW, {"words": WordScorer()}).warnings)
    assert "chose the training data" not in text
    assert re.search(r"\d+ comparisons with 100 resamples: no corrected p-value can be below 0\.2", text)


def test_the_written_folder_is_whole_and_the_same_again(base, tmp_path):
    other = write_answers(tmp_path / "other", lambda row: f"<script>alert({row})</script>")
    found = evaluate({"base": [base], "other": [other]}, FEW, {"words": WordScorer()})
    for out in (tmp_path / "one", tmp_path / "two"):
        write_evaluation(found, {"words": WordScorer()}, out)
    one, two = tmp_path / "one", tmp_path / "two"
    assert changed_files(one) == []
    assert all(
        (one / name).read_bytes() == (two / name).read_bytes()
        for name in ["manifest.json", *read_manifest(one)["files"]]
    )
    html = (one / "evaluation.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(0)" in html
    assert not re.search(r"https?://", html)
    rows = [orjson.loads(line) for line in (one / "rows.jsonl").read_bytes().splitlines()]
    assert len(rows) == 3 * ROWS
    result = orjson.loads((one / "evaluation.json").read_bytes())
    sums = np.sum([row["bleu_nltk_m1"] for row in rows if row["system"] == "base"], axis=0)
    assert nltk_bleu(sums[None], 2)[0] == pytest.approx(result["figures"]["base"]["bleu2_nltk_m1"]["value"])
    lengths = [row["words/length"] for row in rows if row["system"] == "reference"]
    assert np.mean(lengths) == result["figures"]["reference"]["words/length"]["value"]
    assert read_manifest(one)["scorers"]["words"]["digest"] == WordScorer.digest
    write_evaluation(found, {"words": WordScorer()}, one)  # an evaluation may be replaced
    with pytest.raises(EmpathyError, match="holds something else"):
        write_evaluation(found, {}, base)


def test_names_of_systems(tmp_path):
    odd = tmp_path / "a=b,c"
    odd.mkdir()
    found = named_folders(["answers/base", "x=a,b", str(odd)], "system", several=True)
    assert found == {"base": [Path("answers/base")], "x": [Path("a"), Path("b")], "a=b,c": [odd]}
    with pytest.raises(EmpathyError, match="two systems are called 'base'"):
        named_folders(["one/base", "two/base"], "system", several=True)
    with pytest.raises(EmpathyError, match="names no scorer"):
        named_folders(["x="], "scorer", several=False)


def test_the_command_prints_tables_or_json(base, tmp_path, scorer_folder):
    other = write_answers(tmp_path / "other", lambda row: said(row) + " too")
    arguments = [str(base), f"expert={other}", "--scorer", f"paper={scorer_folder}", "--resamples", "50"]
    plain = CliRunner().invoke(evaluate_command, [*arguments, "-o", str(tmp_path / "out")], catch_exceptions=False)
    assert plain.exit_code == 0
    assert "expert less base, on the same conversations" in plain.output
    # The counting scorer: four words, a role and the end are 6; one word more is 7.
    assert re.search(r"paper/sensibility +6\.000 \[6\.000, 6\.000\] +7\.000 ", plain.output)
    machine = CliRunner().invoke(evaluate_command, [*arguments, "-o", str(tmp_path / "out"), "--json"])
    assert orjson.loads(machine.stdout)["figures"]["expert"]["paper/sensibility"]["value"] == 7
    assert orjson.loads((tmp_path / "out" / "evaluation.json").read_bytes()) == orjson.loads(machine.stdout)


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in {"torch", "transformers", "lightning", "peft"}:
            raise ModuleNotFoundError(f"{name} must not be needed", name=name)

sys.meta_path.insert(0, Refuse())
from efficient_empathy.experts.evaluate_commands import evaluate_command

evaluate_command(sys.argv[1:])
"""


def test_evaluating_needs_no_torch(base, tmp_path, scorer_folder):
    arguments = [str(base), "--scorer", str(scorer_folder), "-o", str(tmp_path / "out"), "--resamples", "20"]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "paper/sensibility" in done.stdout


def test_the_rubric_of_the_docs_reads_epitome_rows(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text()
    rubric_file = tmp_path / "epitome.yaml"
    rubric_file.write_text(re.search(r"```yaml\n(name: epitome\n.*?)```", text, re.DOTALL)[1])
    rubric = Rubric.load(rubric_file)
    assert rubric.names == ("emotional_reactions", "interpretations", "explorations")
    assert {(dimension.low, dimension.high, len(dimension.levels)) for dimension in rubric.dimensions} == {(0, 2, 3)}
    row = {"id": "p1_r1", "conversation_id": "p1", "context": ["I hate myself."], "response": "Why is that?"}
    labels = tmp_path / "epitome.jsonl"
    labels.write_bytes(orjson.dumps({**row, "emotional_reactions": 0, "interpretations": 0, "explorations": 2}))
    labelled = load_labelled(labels, None, rubric)
    assert labelled.scores.tolist() == [[0, 0, 2]]
    assert labelled.examples[0].dialogue_id == "p1"


def test_a_killed_evaluation_can_be_run_again(base, tmp_path):
    found = evaluate({"base": [base], "other": [write_answers(tmp_path / "other", said)]}, FEW)
    out = tmp_path / "out"
    write_evaluation(found, {}, out)
    (out / "manifest.json").unlink()  # as a kill between the files leaves it
    (out / ".rows.jsonl.abcd1234.tmp").write_text("half a row")
    (out / "pairwise").mkdir()
    (out / "pairwise" / "answers.sqlite").write_text("paid for")
    write_evaluation(found, {}, out)
    assert changed_files(out) == []
    assert (out / "pairwise" / "answers.sqlite").read_text() == "paid for"
