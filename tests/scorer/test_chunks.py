"""New fields written column by column give the bytes that writing them row by row gives."""

import gc
import tracemalloc

import numpy as np
import orjson
import pytest
from length_scorer import LengthScorer

from efficient_empathy.dialogues import Record, parse_row, with_fields
from efficient_empathy.dialogues.records import row_examples
from efficient_empathy.scorer.chunks import Chunk
from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.outputs import JsonlPart

ODD = 'c",\n  "%s%%\\ \u2028é☃'
"""What separates the texts in the form that is cut, and whatever else could be mistaken for something."""
TURNS = [{"role": role, "text": text} for role, text in zip(("speaker", "listener") * 2, "abcd", strict=True)]
ROWS = [
    {"id": ODD, "turns": TURNS},
    {"id": "p", "context": ["%b"], "response": ODD},
    {"id": "old", "ee_turn": 3, "ee_id": "old_turn:3", "ee_x": 1, "turns": TURNS},
    {"prompt": "a", "response": "b"},
]


def chunk_of(rows, raws, scores, dimensions, subsets):
    places = [(number, row, raw) for number, (row, raw) in enumerate(zip(rows, raws, strict=True), 1)]
    cut = [(place, e) for place in places for e in row_examples(place[1], f"f:{place[0]}", "every-turn")]
    chosen = subsets and [subsets[index % len(subsets)] for index in range(len(cut))]
    filled = np.resize(np.array(scores, np.float64), (len(cut), len(dimensions)))
    return Chunk([place for place, _ in cut], [e for _, e in cut], filled, dimensions, chosen)


@pytest.mark.parametrize("spaced", [None, b" %b \r"])
@pytest.mark.parametrize("subsets", [None, ("kept", "discarded")])
@pytest.mark.parametrize("dimensions", [("warmth",), ("sensibility", "rationality"), ("a", '50 % "b"', "ç")])
def test_lines_are_those_of_with_fields(dimensions, subsets, spaced):
    raws = [orjson.dumps(row) for row in ROWS[:3]]
    raws = [spaced % raw for raw in raws] if spaced else raws
    scores = [5, 0, -1.5, 0.0001, 10, 7.1234, 123456.7]
    chunk = chunk_of(ROWS, [*raws, None], scores, dimensions, subsets)
    lines = list(chunk.lines(range(len(chunk.examples))))
    assert len(lines) == 2 + 1 + 1 + 1
    for place, line in enumerate(lines):
        (number, row, raw), example = chunk.rows[place], chunk.examples[place]
        fields = {"ee_id": example.id, "ee_turn": example.turn}
        fields |= {f"ee_{name}": float(x) for name, x in zip(dimensions, chunk.scores[place], strict=True)}
        fields |= {"ee_subset": subsets[place % 2]} if subsets else {}
        assert line == with_fields(Record(row, parse_row(row, "f"), "f", number, raw), fields)
        assert chunk.row(place) == (row, fields)
    assert orjson.loads(lines[0])["ee_id"] == ODD + "_turn:1"
    assert lines[3].startswith(b'{"id":"old","turns":')


def test_a_run_leaves_the_garbage_collector_as_it_was(job):
    seen = []

    class Looking(LengthScorer):
        def score(self, examples):
            seen.append(gc.get_threshold()[0])
            return super().score(examples)

    before = gc.get_threshold()
    run(job, Looking())
    assert gc.get_threshold() == before
    assert min(seen) > before[0]


def test_the_lines_of_a_long_conversation_are_not_held_together(tmp_path):
    # 400 lines of a conversation of 400 KB: 160 MB, of which a few are in memory at a time.
    turns = [{"role": role, "text": "x" * 500} for _ in range(400) for role in ("speaker", "listener")]
    row = {"id": "long", "turns": turns}
    chunk = chunk_of([row], [orjson.dumps(row)], [5, 5], ("a", "b"), None)
    part = JsonlPart(tmp_path / "part")
    tracemalloc.start()
    try:
        part.add(chunk, range(len(chunk.examples)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert part.finish(tmp_path / "kept" / "part-00000.jsonl")["bytes"] > 400 * 400_000
    assert peak < 10e6
