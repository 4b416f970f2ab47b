"""Dialogues: the formats and containers people have, the examples they hold, and the rows that go out again."""

from efficient_empathy.dialogues.examples import EXAMPLE_MODES, ExampleMode, examples_of
from efficient_empathy.dialogues.formats import RowError, parse_row
from efficient_empathy.dialogues.readers import read_dialogues, read_examples, read_records, read_unit, stream_examples
from efficient_empathy.dialogues.records import Record, Reject, Row, record_examples, with_fields
from efficient_empathy.dialogues.types import Dialogue, Example, Turn
from efficient_empathy.dialogues.units import Unit, plan_units

__all__ = [
    "EXAMPLE_MODES",
    "Dialogue",
    "Example",
    "ExampleMode",
    "Record",
    "Reject",
    "Row",
    "RowError",
    "Turn",
    "Unit",
    "examples_of",
    "parse_row",
    "plan_units",
    "read_dialogues",
    "read_examples",
    "read_records",
    "read_unit",
    "record_examples",
    "stream_examples",
    "with_fields",
]
