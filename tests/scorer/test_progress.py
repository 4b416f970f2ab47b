"""Progress: what the lines say, worked by hand."""

import orjson
import pytest
from rich.console import Console

from efficient_empathy.scorer import progress
from efficient_empathy.scorer.progress import JsonEvents, LiveBar, PlainLines, Quiet, progress_for


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_for_logs(clock):
    lines = []
    with PlainLines(lines.append, every_seconds=30) as told:
        told.start({0: 10.0, 1: 10.0, 2: 20.0}, done=[0], counts={"warm": 100, "rest": 0})
        clock[0] += 20
        told.chunk({"warm": 100, "rest": 200})  # too early for a line
        told.unit_done(1)
        clock[0] += 20
        told.chunk({"warm": 0, "rest": 100})
        told.unit_done(2)
        clock[0] += 40
    # After 40 s: 400 of this run's examples; weight 10 of its 30 is done, so 80 s are left. 200 of 500 are warm.
    # After 80 s: all is done.
    assert lines == [
        "rating 3 units, 1 of them done before",
        "2/3 units · 500 examples · 10/s · 1:20 left · warm 40 %, rest 60 %",
        "3/3 units · 500 examples · 5/s · 0:00 left · warm 40 %, rest 60 %",
    ]


def test_events_for_machines(clock):
    events = []
    with pytest.raises(ValueError, match="stop"), JsonEvents(lambda line: events.append(orjson.loads(line)), 5) as told:
        told.start({0: 10.0, 1: 10.0, 2: 20.0}, done=[0], counts={"warm": 100, "rest": 0})
        clock[0] += 2
        told.chunk({"warm": 0, "rest": 100})  # too early for an event
        told.unit_done(1)
        clock[0] += 8
        told.chunk({"warm": 100, "rest": 100})
        raise ValueError("stop")
    facts = {"units": 3, "units_done": 1, "share_done": 0.25, "examples": 100, "examples_per_second": 0.0}
    assert events[0] == {"event": "start", **facts, "seconds_left": None, "subsets": {"warm": 100, "rest": 0}}
    # After 10 s: 300 examples more, and weight 10 of the 30 that were left: 20 s for the other 20.
    facts = {"units": 3, "units_done": 2, "share_done": 0.5, "examples": 400, "examples_per_second": 30.0}
    assert events[1] == {"event": "progress", **facts, "seconds_left": 20.0, "subsets": {"warm": 200, "rest": 200}}
    assert events[2] == {**events[1], "event": "stopped"}
    assert len(events) == 3


@pytest.mark.parametrize(
    ("kind", "terminal", "shown"),
    [
        ("auto", True, LiveBar),
        ("auto", False, Quiet),
        ("bar", False, LiveBar),
        ("lines", True, PlainLines),
        ("json", True, JsonEvents),
        ("none", True, Quiet),
    ],
)
def test_how_progress_is_shown(monkeypatch, kind, terminal, shown):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal)
    assert type(progress_for(lambda line: None, kind)) is shown


def test_a_run_that_fails_has_no_last_line(clock):
    lines = []
    with pytest.raises(ValueError, match="stop"), PlainLines(lines.append) as told:
        told.start({0: 1.0}, done=[], counts={})
        raise ValueError("stop")
    assert lines == ["rating 1 units"]


def test_the_bar_goes_to_stderr_only(capsys, monkeypatch):
    class Watched(Console):
        # Whatever stderr is, and whatever the environment says of it: CI's terminal is a dumb one, where no bar is drawn.
        is_terminal, is_dumb_terminal = True, False

    monkeypatch.setattr("rich.console.Console", Watched)
    with LiveBar() as told:
        told.start({0: 1.0}, done=[], counts={"examples": 0})
        told.chunk({"examples": 3})
        told.unit_done(0)
    said = capsys.readouterr()
    assert "1/1 units · 3 examples" in said.err
    assert said.out == ""
