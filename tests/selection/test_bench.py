"""``ee-cli bench``: every tier measured in its own process, one of them recommended."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from efficient_empathy.cli import app
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.bench import BenchOptions, Measured, _agreement, recommend


def measured(tier: str, rate: float, flips: float) -> Measured:
    return Measured(tier, "fp32", rate, None, None, None, (1.0,), flips, None, None)


def test_equal_scores_agree_also_where_they_are_constant():
    rising = np.array([1.0, 2.0, 3.0])
    assert _agreement(np.ones(3), np.ones(3)) == _agreement(rising, rising) == 1.0
    assert _agreement(np.ones(3), rising) == 0.0
    # Ranks 0 1 2 against 0 2 1: 1 - 6 × (0 + 1 + 1) / (3 × 8) = 0.5.
    assert _agreement(rising, np.array([1.0, 9.0, 4.0])) == pytest.approx(0.5)


def test_the_fastest_that_keeps_the_promise_is_recommended():
    found = [measured("transformer", 100, 0.0), measured("fast", 9000, 0.2), measured("cascade", 400, 0.019)]
    assert recommend(found, 0.02).tier == "cascade"
    assert recommend(found, 0.01).tier == "transformer"
    assert recommend(found, 0.3).tier == "fast"


@pytest.mark.parametrize("options", [{"rounds": 0}, {"usd_per_hour": -1}, {"max_flips": 0}])
def test_options_are_checked(options):
    with pytest.raises(EmpathyError, match=next(iter(options))):
        BenchOptions(**options)


@pytest.mark.slow
def test_the_command_measures_what_the_folder_has(tmp_path, scorer_folder):
    rows = [{"id": f"r{n}", "context": "a b c " * (n % 3 + 1), "response": "d e " * (n % 4 + 1)} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    arguments = ["bench", str(tmp_path / "rows.jsonl"), "--scorer", str(scorer_folder), "--limit", "50"]
    run = CliRunner().invoke(app, [*arguments, "--rounds", "1", "--usd-per-hour", "0.36", "--json"])
    assert run.exit_code == 0, run.output
    body = json.loads(run.stdout)
    assert body["examples"] == 50
    (one,) = body["measured"]
    assert (one["tier"], one["precision"], one["flips"]) == ("transformer", "fp32", 0.0)
    assert one["spearman"] == pytest.approx([1.0, 1.0])
    # 0.36 dollars an hour are 100 dollars a million seconds.
    assert one["usd_per_million"] == pytest.approx(100 / one["examples_per_second"])
    assert 0 <= one["padding_share"] < 0.5
    assert body["recommended"] == one


@pytest.mark.slow
def test_nothing_to_measure_on_is_said(tmp_path, scorer_folder):
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "turns": [{"role": "speaker", "text": "hello"}]}\n')
    run = CliRunner().invoke(app, ["bench", str(tmp_path / "rows.jsonl"), "--scorer", str(scorer_folder)])
    assert isinstance(run.exception, EmpathyError)
    assert "there are no examples to measure on" in str(run.exception)


@pytest.mark.slow
def test_the_command_measures_the_examples_that_filter_rates_and_tells_of_other_rows(tmp_path, scorer_folder):
    turns = [{"role": role, "text": "a b c"} for role in ("speaker", "listener") * 3]
    rows = [json.dumps({"id": "c", "turns": turns, "ee_turn": turn}) for turn in (1, 3, 5)]
    (tmp_path / "scored.jsonl").write_text("\n".join([*rows, "no row", "nor this"]) + "\n")
    run = CliRunner().invoke(app, ["bench", str(tmp_path / "scored.jsonl"), "--scorer", str(scorer_folder), "--json"])
    assert json.loads(run.stdout)["examples"] == 3
    assert "left out, since they cannot be read: 2 rows (2 " in run.stderr
