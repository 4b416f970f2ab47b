"""Why a row is where it is: the numbers put into the policy, what would change it, and what the scorer is worth there."""

import orjson
import pytest
from click.testing import CliRunner

from efficient_empathy.audit.commands import explain_command
from efficient_empathy.audit.explaining import describe, explain
from efficient_empathy.audit.finding import _is_rejected_row
from efficient_empathy.audit.reasons import at_thresholds, nearest_moves, threshold_words, why
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import read_manifest, write_manifest
from efficient_empathy.selection import ExpressionPolicy, PaperPolicy
from efficient_empathy.selection.policies import ReleasedScriptPolicy

SCALES = {"sensibility": (0.0, 10.0), "rationality": (0.0, 10.0)}


def scores(s, r):
    return {"sensibility": s, "rationality": r}


@pytest.mark.parametrize(
    ("s", "r", "said"),
    [
        (6.2, 3.1, "sensibility 6.2 > 5 and rationality 3.1 < 5"),
        (3.1, 6.2, "sensibility 3.1 < 5 and rationality 6.2 > 5"),
        (7, 6, "sensibility 7 > 5 and rationality 6 > 5: high on both, and all other examples are rationality"),
        (1, 2, "sensibility 1 < 5 and rationality 2 < 5: low on both, and all other examples are rationality"),
        (5, 2, "sensibility 5 = 5 and rationality 2 < 5: a tie at the threshold is on neither side, and all other"),
    ],
)
def test_the_paper_s_rule_in_words(s, r, said):
    assert why(PaperPolicy(), scores(s, r)).startswith(said)


def test_the_released_script_discards_the_rest():
    assert why(ReleasedScriptPolicy(), scores(7, 6)).endswith("all other examples are discarded")


def test_expressions_in_words():
    policy = ExpressionPolicy({"calm": "sensibility > 6 and rationality<4", "rest": "rationality >= 2*2"})
    assert why(policy, scores(7, 3)) == "calm (sensibility 7 > 6 and rationality 3<4): yes"
    assert why(policy, scores(1, 3)).endswith("rest (rationality 3 >= 2*2): no; none holds, so discarded")


def test_the_nearest_threshold_and_the_others():
    # R 3.1 is 1.9 under T; S 6.2 is 1.2 over it: S is nearer.
    first, second = nearest_moves(PaperPolicy(), scores(6.2, 3.1), SCALES)
    assert (first.dimension, first.boundary, first.distance, first.subset) == ("sensibility", 5.0, 1.2, "rationality")
    assert (second.dimension, second.boundary, second.distance, second.subset) == (
        "rationality",
        5.0,
        1.9,
        "rationality",
    )
    ranges = at_thresholds(PaperPolicy(), scores(6.2, 3.1), SCALES)
    assert [(r["from"], r["to"], r["subset"]) for r in ranges] == [
        (0, 3.1, "rationality"),
        (3.1, 6.2, "sensibility"),
        (6.2, 10, "rationality"),
    ]
    assert threshold_words(ranges) == "below 3.1 rationality; between 3.1 and 6.2 sensibility; above 6.2 rationality"
    assert threshold_words(at_thresholds(PaperPolicy(), scores(4, 4), SCALES)) == "rationality at every threshold"
    policy = ExpressionPolicy({"calm": "sensibility > 6.5"})
    (only,) = nearest_moves(policy, scores(6.2, 3.1), SCALES)
    assert (only.dimension, only.boundary, only.distance, only.subset) == ("sensibility", 6.5, 0.3, "calm")
    assert at_thresholds(policy, scores(6.2, 3.1), SCALES) == []


@pytest.mark.parametrize("container", ["jsonl", "parquet"])
def test_a_row_of_a_filter_run(make_run, container):
    folder = make_run(container=container)
    (found,), scorer = explain(folder, "warm")
    assert (found.subset, dict(found.scores), found.line) == ("sensibility", scores(7, 4), 1)
    assert found.file == f"sensibility/part-00000.{container}"
    assert found.why == "sensibility 7 > 5 and rationality 4 < 5"
    assert (found.moves[0].dimension, found.moves[0].distance) == ("rationality", 1.0)
    assert scorer.held_out == 120
    assert scorer.quality["spearman/sensibility"]["value"] == 0.512345
    text = describe([found], scorer)
    assert "warm is in sensibility" in text
    assert "nearest threshold   rationality 4 is 1 from 5; beyond that it would be in rationality" in text
    assert "rank correlation sensibility: 0.512 [0.400, 0.600]" in text
    result = CliRunner().invoke(explain_command, ["warm", "--in", str(folder), "--json"])
    assert result.exit_code == 0
    facts = orjson.loads(result.stdout)
    assert (facts["rows"][0]["subset"], facts["scorer"]["digest"]) == ("sensibility", scorer.digest)


def test_a_rejected_row_by_its_id_or_its_place(make_run, tmp_path):
    folder = make_run()
    for name in ("broken", "rows.jsonl:6", f"{tmp_path}/rows.jsonl:6"):
        (found,), scorer = explain(folder, name)
        assert found.subset is None
        assert found.rejected["reason"] == "invalid-json"
        assert (found.rejected["file"], found.rejected["line"]) == (str(tmp_path / "rows.jsonl"), 6)
        assert (
            "rows.jsonl:6 was rejected (rejected/part-00000.jsonl, line 1)\n  why                 invalid-json: "
            in describe([found], scorer)
        )


def test_a_conversation_gives_all_of_its_examples(scorer_folder, make_run, tmp_path):
    turns = [{"role": role, "text": "a b"} for role in ("speaker", "listener", "speaker", "listener")]
    (tmp_path / "rows.jsonl").write_bytes(orjson.dumps({"id": 'c "1"', "turns": turns}) + b"\n")
    folder = make_run()
    found, _ = explain(folder, 'c "1"')
    assert [one.id for one in found] == ['c "1"_turn:1', 'c "1"_turn:3']
    (one,), _ = explain(folder, 'c "1"_turn:3')
    assert one.id == 'c "1"_turn:3'


@pytest.mark.parametrize("container", ["jsonl", "parquet"])
@pytest.mark.parametrize("key", ["conv_id", "conversation_id", "dialogue_id"])
def test_a_conversation_of_pairs_gives_all_of_its_examples(make_run, tmp_path, container, key):
    rows = [{"id": f"p{n}", key: "hit:1" if n < 2 else "hit:10", "prompt": "a", "response": "b c"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(orjson.dumps(row) for row in [*rows, {key: "hit:1", "text": "x"}]))
    (rejected, *found), _ = explain(make_run(container=container), "hit:1")
    assert [one.id for one in found] == ["p0", "p1"]
    assert (rejected.id, rejected.rejected["reason"]) == (f"{tmp_path}/rows.jsonl:4", "unknown-format")


def test_a_rejected_row_whose_id_is_written_with_escapes():
    row = {"file": "rows.jsonl", "line": 1, "raw": '{"id": "caf\\u00e9-1", "messages": []}'}
    assert _is_rejected_row(row, "café-1")
    assert not _is_rejected_row(row, "café-2")


def test_a_part_that_is_missing_is_one_sentence(make_run):
    folder = make_run()
    (folder / "discarded" / "part-00000.jsonl").unlink()
    with pytest.raises(EmpathyError, match=r"part-00000\.jsonl.*ee-cli verify"):
        explain(folder, "warm")


def test_an_unknown_id_and_those_like_it(make_run):
    folder = make_run()
    with pytest.raises(EmpathyError, match=r"holds no example 'wram'.* Like it are: warm"):
        explain(folder, "wram")
    with pytest.raises(EmpathyError, match=r"holds no example 'zzz'(?!.*Like it)"):
        explain(folder, "zzz")


def test_scored_rows_and_other_kinds(make_run, scorer_folder):
    (found,), scorer = explain(make_run(policy=None), "cold")
    assert (found.subset, found.why) == (None, "it was scored only: no policy chose a subset")
    assert "cold (examples/part-00000.jsonl, line 3)" in describe([found], scorer)
    with pytest.raises(EmpathyError, match="kind 'scorer'; explain reads what filter or score wrote"):
        explain(scorer_folder, "x")


def test_a_changed_row_is_not_explained(make_run):
    folder = make_run()
    path = folder / "sensibility" / "part-00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b"7.0", b"6.0"))
    with pytest.raises(EmpathyError, match=r"part-00000\.jsonl' has changed since it was written"):
        explain(folder, "warm")


def test_a_tier_and_a_scorer_that_is_not_there(make_run):
    folder = make_run()
    path = folder / "sensibility" / "part-00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"ee_subset"', b'"ee_tier":"fast","ee_subset"'))
    record = read_manifest(folder)
    record["scorer"]["digest"] = "0" * 64
    body = {key: value for key, value in record.items() if key not in ("kind", "format", "files")}
    write_manifest(folder, "subsets", body, list(record["files"]))
    found, scorer = explain(folder, "warm")
    assert found[0].tier == "fast"
    text = describe(found, scorer)
    assert "decided by the tier fast" in text
    assert "not found near here, so its measured quality is not known" in text
