"""Scores inside a Ray Data pipeline: ``score_dataset`` adds a scorer's fields to the rows of a data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import orjson

from efficient_empathy.dialogues import ExampleMode, Record, RowError, parse_row, record_examples
from efficient_empathy.dialogues.examples import EXAMPLE_MODES
from efficient_empathy.dialogues.records import FIELD_PREFIX, check_dialogue, row_json
from efficient_empathy.dialogues.types import Example
from efficient_empathy.errors import EmpathyError, require
from efficient_empathy.manifest import sha256_bytes
from efficient_empathy.scorer.job import check_scorer
from efficient_empathy.scorer.rating import rated_scores
from efficient_empathy.scorer.ray_options import RayOptions
from efficient_empathy.scorer.ray_scorer import ShippedScorer, ship_scorer
from efficient_empathy.scorer.scorer import Scorer

Unreadable = Literal["stop", "keep"]


def score_dataset(
    dataset: Any,
    scorer_folder: str | Path,
    *,
    examples: ExampleMode = "every-turn",
    unreadable: Unreadable = "stop",
    concurrency: int | tuple[int, int] | None = None,
    num_gpus: float = 0.0,
    batch_size: int = 2000,
    scorer_options: Mapping[str, Any] | None = None,
) -> Any:
    """Add scores to the dialogues of a Ray data set, lazily, in an actor pool with one session an actor.

    Each row that came in gives one row for each of its examples, all its columns as they were, and ``ee_id``, ``ee_turn`` and
    ``ee_<dimension>`` (rounded to 4 decimals) as ``ee-cli score`` writes them. A row without an id is called by a hash of its
    content, since rows have no numbers here.

    Args:
        dataset: a ``ray.data.Dataset`` whose rows are dialogues, in any form that ``ee-cli score`` reads.
        scorer_folder: what ``ee-cli distill`` wrote; it travels to nodes that do not see it.
        examples: ``every-turn`` or ``last-turn``.
        unreadable: ``stop`` raises for a row that cannot be read; ``keep`` lets it through without scores and with the reason
            in a column ``ee_error``, which is null in all other rows.
        concurrency: actors, or the fewest and the most of them; None leaves it to Ray Data.
        num_gpus: GPUs of each actor, which may be a share such as 0.25; 0 rates on the CPU.
        batch_size: rows that an actor takes at a time.
        scorer_options: ``precision``, ``threads`` (default 1) and ``tokenizer`` of ``Scorer.load``.

    Raises:
        MissingExtraError: Ray Data is not installed.
        EmpathyError: an option is out of range, or the folder is no scorer.
    """
    require("ray.data", "ray", "score_dataset")
    device = RayOptions(gpus=num_gpus).device
    if examples not in EXAMPLE_MODES or unreadable not in ("stop", "keep"):
        raise EmpathyError(
            f"examples must be one of {', '.join(EXAMPLE_MODES)} and unreadable stop or keep, not '{examples}', '{unreadable}'."
        )
    options = {"precision": "fp32" if num_gpus else "auto", "threads": 1, **(scorer_options or {})}
    scorer = Scorer.load(scorer_folder, device="cpu", **options)
    check_scorer(scorer, None)
    threads = scorer.threads or 1
    return dataset.map_batches(
        _ScoresBatches,
        batch_size=batch_size,
        batch_format="pyarrow",
        fn_constructor_args=(ship_scorer(scorer, device, threads), examples, unreadable),
        compute=_actor_pool(concurrency),
        num_cpus=threads,
        num_gpus=num_gpus or None,
    )


def _actor_pool(concurrency: int | tuple[int, int] | None) -> Any:
    from ray.data import ActorPoolStrategy

    if concurrency is None:
        return ActorPoolStrategy(min_size=1)
    if isinstance(concurrency, int):
        return ActorPoolStrategy(size=concurrency)
    return ActorPoolStrategy(min_size=concurrency[0], max_size=concurrency[1])


class _ScoresBatches:
    """The actor: holds a scorer, and rates one batch of rows at a time."""

    def __init__(self, scorer: ShippedScorer, examples: ExampleMode, unreadable: Unreadable) -> None:
        self._scorer = scorer.open()
        self._examples = examples
        self._unreadable = unreadable

    def __call__(self, table: Any) -> Any:
        """Rate the rows of a ``pyarrow.Table``."""
        import numpy as np
        import pyarrow as pa

        places: list[int] = []
        found: list[Example | str] = []
        for place, row in enumerate(table.to_pylist()):
            read = self._read(row)
            places += [place] * len(read)
            found += read
        rated = [index for index, item in enumerate(found) if isinstance(item, Example)]
        examples = [found[index] for index in rated]
        scores, _ = rated_scores(self._scorer, examples, lambda index: f"row {places[rated[index]]} of its batch")  # type: ignore[arg-type]
        columns = np.full((len(found), scores.shape[1]), np.nan)
        columns[rated] = scores
        kept = [name for name in table.column_names if not name.startswith(FIELD_PREFIX)]
        out = table.select(kept).take(pa.array(places, pa.int64()))
        ids = [item.id if isinstance(item, Example) else None for item in found]
        turns = [item.turn if isinstance(item, Example) else None for item in found]
        out = out.append_column("ee_id", pa.array(ids, pa.string())).append_column(
            "ee_turn", pa.array(turns, pa.int64())
        )
        for name, values in zip(self._scorer.dimensions, columns.T, strict=True):
            out = out.append_column(f"ee_{name}", pa.array(values, pa.float64(), from_pandas=True))
        if self._unreadable == "keep":
            errors = [item if isinstance(item, str) else None for item in found]
            out = out.append_column("ee_error", pa.array(errors, pa.string()))
        return out

    def _read(self, row: dict[str, Any]) -> list[Example] | list[str]:
        try:
            dialogue = parse_row(row, f"row-{sha256_bytes(row_json(row))[:16]}")
            check_dialogue(row, dialogue)
            return record_examples(Record(row, dialogue, "", 0, None), self._examples)
        except RowError as error:
            if self._unreadable == "keep":
                return [f"{error.reason}: {error.detail}"]
            shown = orjson.dumps(row, default=str).decode()[:200]
            raise EmpathyError(
                f"a row cannot be read ({error.reason}: {error.detail}): {shown} … Mend it, or let such rows through with "
                "unreadable='keep'."
            ) from None
