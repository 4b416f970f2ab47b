"""``filter``, ``score`` and ``report`` as a user types them, on a real scorer folder."""

import orjson
import pytest
from click.testing import CliRunner

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import read_manifest
from efficient_empathy.scorer.commands import score_command
from efficient_empathy.selection.commands import filter_command, report_command

# Score 0: words of the response + 2. Score 1: CLS, SEP, role and words of the context, i.e. words + 3.
PAIRS = [
    ("a", "b c d e f"),  # S 7, R 4: sensibility
    ("a b c", "b"),  # S 3, R 6: discarded
    ("a b", "b c"),  # S 4, R 5: a tie, so rationality
    ("a", "b"),  # S 3, R 4: low on both, so rationality
]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"id": f"p{n}", "context": context, "response": response} for n, (context, response) in enumerate(PAIRS)]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def call(command, *words):
    return CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)


def test_filter_prints_the_table_and_report_prints_it_again(scorer_folder, pairs, tmp_path):
    out = tmp_path / "subsets"
    result = call(filter_command, "--scorer", scorer_folder, pairs, "-o", out)
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["subset", "examples", "share", "mean", "sensibility", "mean", "rationality"]
    assert lines[1:5] == [
        ["sensibility", "1", "25.0", "%", "7.00", "4.00"],
        ["rationality", "2", "50.0", "%", "3.50", "4.50"],
        ["discarded", "1", "25.0", "%", "3.00", "6.00"],
        ["all", "4", "100.0", "%", "4.25", "4.75"],
    ]
    assert "ties at the threshold (5): 1\n" in result.stdout
    assert "low on both dimensions: 1\n" in result.stdout
    assert "rejected rows: 0 of 4\n" in result.stdout
    assert result.stdout.endswith(f"written to: {out}\n")
    assert result.stderr == ""
    assert call(report_command, out).stdout == result.stdout
    again = call(filter_command, "--scorer", scorer_folder, pairs, "-o", out)
    assert again.stdout == result.stdout
    assert "Already done" in again.stderr


def test_json_is_the_manifest(scorer_folder, pairs, tmp_path):
    out = tmp_path / "subsets"
    manifest = orjson.loads(call(filter_command, "--scorer", scorer_folder, pairs, "-o", out, "--json").stdout)
    assert manifest == read_manifest(out)
    assert manifest["kind"] == "subsets"
    assert manifest["inputs"][0]["path"] == str(pairs)
    assert manifest["scorer"]["folder"] == "paper"
    assert manifest["policy"]["threshold"] == 5.0
    assert manifest["ran_on"] == ["CPUExecutionProvider"]
    facts = orjson.loads(call(report_command, out, "--json").stdout)
    assert facts["counts"] == manifest["counts"]
    assert facts["counts"]["examples"] == 4


def test_progress_goes_to_stderr_as_asked_for_and_the_result_to_stdout(scorer_folder, pairs, tmp_path):
    words = ("--scorer", scorer_folder, pairs, "--json", "--workers", "1", "--threads", "1")
    result = call(filter_command, *words, "-o", tmp_path / "a", "--progress", "json")
    events = [orjson.loads(line) for line in result.stderr.splitlines()]
    assert [event["event"] for event in events] == ["start", "done"]
    assert events[1]["subsets"] == {"sensibility": 1, "rationality": 2, "discarded": 1}
    assert orjson.loads(result.stdout)["counts"]["examples"] == 4
    assert "1/1 units" in call(filter_command, *words, "-o", tmp_path / "b", "--progress", "lines").stderr


@pytest.mark.parametrize("workers", ["0", "many", "1.5"])
def test_the_number_of_workers_is_auto_or_whole(scorer_folder, pairs, tmp_path, workers):
    with pytest.raises(EmpathyError, match=f"workers must be auto or .*, not '?{workers}"):
        call(filter_command, "--scorer", scorer_folder, pairs, "-o", tmp_path / "out", "--workers", workers)


def test_the_released_script_s_names(scorer_folder, pairs, tmp_path):
    words = ("--scorer", scorer_folder, pairs, "-o", tmp_path / "out", "--policy", "released-script", "--json")
    subsets = orjson.loads(call(filter_command, *words).stdout)["subsets"]
    assert {name: subset["examples"] for name, subset in subsets.items()} == {
        "sensibility": 1,
        "rationality": 1,
        "discarded": 2,
    }


def test_keep_works_with_another_rubric_s_scorer(other_scorer_folder, pairs, tmp_path):
    with pytest.raises(EmpathyError, match="--keep 'kept=warmth>6'"):
        call(filter_command, "--scorer", other_scorer_folder, pairs, "-o", tmp_path / "out")
    words = ("--keep", "warm=warmth > 6", "--keep", "clear=clarity >= 5", "--json")
    result = call(filter_command, "--scorer", other_scorer_folder, pairs, "-o", tmp_path / "out", *words)
    subsets = orjson.loads(result.stdout)["subsets"]
    assert {name: subset["examples"] for name, subset in subsets.items()} == {"warm": 1, "clear": 2, "discarded": 1}
    with pytest.raises(EmpathyError, match="one or the other"):
        call(filter_command, "--scorer", other_scorer_folder, pairs, "-o", tmp_path / "out", *words, "--threshold", "4")


def test_score_writes_one_folder_of_parts(scorer_folder, pairs, tmp_path):
    out = tmp_path / "scored"
    result = call(score_command, "--scorer", scorer_folder, pairs, "-o", out, "--format", "jsonl")
    assert result.stdout.splitlines()[1].split() == ["examples", "4", "100.0", "%", "4.25", "4.75"]
    lines = (out / "examples" / "part-00000.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["ee_sensibility"] for line in lines] == [7.0, 3.0, 4.0, 3.0]
    assert orjson.loads((out / "manifest.json").read_bytes())["kind"] == "scored"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_dry_run_writes_nothing(scorer_folder, pairs, tmp_path, as_json):
    out = tmp_path / "subsets"
    words = ("--scorer", scorer_folder, pairs, "-o", out, "--dry-run")
    result = call(filter_command, *words, *(["--json"] if as_json else []))
    assert not out.exists()
    if as_json:
        plan = orjson.loads(result.stdout)
        assert (plan["units"], plan["bytes"], plan["policy"]["name"]) == (1, pairs.stat().st_size, "paper")
    else:
        assert "Nothing was written" in result.stdout


def test_report_on_a_scorer_folder_shows_its_quality(scorer_folder, tmp_path):
    result = call(report_command, scorer_folder)
    assert "dimensions: sensibility (0 to 10), rationality (0 to 10)" in result.stdout
    assert "on 120 held-out examples of 40 conversations" in result.stdout
    assert "0.512 [0.400, 0.600]" in result.stdout
    assert orjson.loads(call(report_command, scorer_folder, "--json").stdout)["quality"]["rows"] == 120
    with pytest.raises(EmpathyError, match=r"no manifest.json"):
        call(report_command, tmp_path)
