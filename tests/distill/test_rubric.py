"""Rubrics: what the default says, what is refused, and that the digest moves with every word."""

import copy
from pathlib import Path

import pytest

from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.errors import EmpathyError

GOOD = {
    "name": "care",
    "instructions": "Rate the last turn.",
    "dimensions": [
        {
            "name": "warmth",
            "low": -2,
            "high": 2,
            "description": "How warm.",
            "levels": {"-2..-1": "cold", 0: "so", "1-2": "warm"},
        },
        {"name": "depth", "low": 1, "high": 5, "description": "How deep."},
    ],
}


def broken(**changes):
    value = copy.deepcopy(GOOD)
    value["dimensions"][0].update(changes)
    return value


def test_default_is_the_papers_two_dimensions_with_every_level_described():
    rubric = Rubric.load()
    assert rubric.names == ("sensibility", "rationality")
    for dimension in rubric.dimensions:
        assert (dimension.low, dimension.high) == (0, 10)
        assert [s for level in dimension.levels for s in range(level.low, level.high + 1)] == list(range(11))


def test_reads_levels_as_numbers_and_ranges():
    warmth, depth = Rubric.from_dict(GOOD).dimensions
    assert [(level.low, level.high) for level in warmth.levels] == [(-2, -1), (0, 0), (1, 2)]
    assert depth.levels == ()


def test_file_round_trip(tmp_path: Path):
    path = tmp_path / "rubric.yaml"
    path.write_text(
        "name: care\ninstructions: Rate it.\ndimensions:\n"
        "  - {name: warmth, low: 0, high: 4, description: How warm., levels: {0-1: cold, 2: so, 3-4: warm}}\n"
    )
    rubric = Rubric.load(path)
    assert Rubric.from_dict(rubric.as_dict()) == rubric
    assert Rubric.from_dict(rubric.as_dict()).digest == rubric.digest


def test_schema_holds_every_dimension_and_nothing_else():
    schema = Rubric.from_dict(GOOD).json_schema()
    assert schema["properties"]["warmth"] == {"type": "integer", "minimum": -2, "maximum": 2}
    assert schema["required"] == ["warmth", "depth"]
    assert schema["additionalProperties"] is False


def test_digest_moves_with_every_word_the_judge_sees():
    changed = [broken(description="How cold."), broken(high=3), broken(levels={0: "so"}), broken(name="heat")]
    changed += [{**GOOD, "instructions": "Rate."}, {**GOOD, "dimensions": GOOD["dimensions"][::-1]}]
    digests = {Rubric.from_dict(value).digest for value in [GOOD, *changed]}
    assert len(digests) == 7


def test_prompt_starts_alike_for_all_examples_and_ends_with_the_last_listener_turn(example):
    system, user = Rubric.load().prompt(example)
    assert system["role"] == "system"
    assert example.response not in system["content"]
    assert "Speaker: My dog died last night.\nListener: I am so sorry, that must hurt." in user["content"]
    assert "LAST Listener turn" in user["content"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must be a mapping"),
        ({"name": "x", "instructions": "y"}, "lacks dimensions"),
        ({**GOOD, "dimensions": []}, "at least one"),
        ({**GOOD, "dimensions": "warmth"}, "must be a list"),
        ({**GOOD, "extra": 1}, "unknown fields: extra"),
        ({**GOOD, "instructions": "  "}, "not empty"),
        (broken(name="two words"), "must be an identifier"),
        (broken(name="and"), "must be an identifier"),
        (broken(name="digest"), "taken"),
        (broken(name="ee_warmth"), "taken"),
        (broken(name="Tier"), "taken"),
        (broken(name="DEPTH"), "twice"),
        (broken(low=2), "low must be less than high"),
        (broken(high=True), "whole number"),
        (broken(high=2.5), "whole number"),
        (broken(levels={"high": "x"}), "must be a score such as 5"),
        (broken(levels={"1-3": "x"}), "must lie between -2 and 2"),
        (broken(levels={"0-1": "x", "1-2": "y"}), "not overlap"),
    ],
)
def test_refuses_what_is_no_rubric(value, message):
    with pytest.raises(EmpathyError, match=message):
        Rubric.from_dict(value)


def test_names_the_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(EmpathyError, match=r"none\.yaml"):
        Rubric.load(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [")
    with pytest.raises(EmpathyError, match=r"bad\.yaml' is not valid YAML"):
        Rubric.load(bad)
