"""Ray Data: ``score_dataset`` adds a scorer's fields to the rows of a data set, in a pool of actors."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efficient_empathy.dialogues.records import FIELD_PREFIX
from efficient_empathy.errors import require
from efficient_empathy.scorer.adapters.columns import arrow_column
from efficient_empathy.scorer.adapters.rows import RowOptions, RowScorer, is_read
from efficient_empathy.scorer.ray_options import RayOptions
from efficient_empathy.scorer.ray_scorer import ShippedScorer, ship_scorer
from efficient_empathy.scorer.scorer import Scorer

_log = logging.getLogger(__name__)


def score_dataset(
    dataset: Any,
    scorer_folder: str | Path,
    options: RowOptions | None = None,
    *,
    concurrency: int | tuple[int, int] | None = None,
    num_gpus: float = 0.0,
    batch_size: int = 2000,
    scorer_options: Mapping[str, Any] | None = None,
) -> Any:
    """Add scores to the dialogues of a Ray data set, lazily, in an actor pool with one session an actor.

    Args:
        dataset: a ``ray.data.Dataset`` whose rows are dialogues, in any form that ``ee-cli score`` reads.
        scorer_folder: what ``ee-cli distill`` wrote; it travels to nodes that do not see it.
        options: policy, what to keep, which examples, what becomes of bad rows.
        concurrency: actors, or the fewest and the most of them; None leaves it to Ray Data.
        num_gpus: GPUs of each actor, which may be a share such as 0.25; 0 rates on the CPU.
        batch_size: rows that an actor takes at a time.
        scorer_options: ``precision``, ``tier``, ``threads`` (default 1), ``tokenizer`` and ``max_flips`` of ``Scorer.load``, which
            is given the policy.

    Returns:
        A data set with one row an example: the columns it came with but for ``ee_`` fields of an earlier run, and the new ones.

    Raises:
        MissingExtraError: Ray Data is not installed.
        EmpathyError: an option is out of range, or the folder is no scorer; while it runs, as ``RowScorer.rate``.
    """
    require("ray.data", "ray", "score_dataset")
    options = options or RowOptions()
    device = RayOptions(gpus=num_gpus).device
    how = {"precision": "fp32" if num_gpus else "auto", "threads": 1, **(scorer_options or {})}
    scorer = Scorer.load(scorer_folder, device="cpu", policy=options.policy, **how)
    RowScorer(scorer, options)  # a policy that does not fit the scorer is said here, and not in an actor
    threads = scorer.threads or 1
    return dataset.map_batches(
        _ScoresBatches,
        batch_size=batch_size,
        batch_format="pyarrow",
        fn_constructor_args=(ship_scorer(scorer, device, threads), options),
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

    def __init__(self, scorer: ShippedScorer, options: RowOptions) -> None:
        self._rows = RowScorer(scorer.open(), options)

    def __call__(self, table: Any) -> Any:
        """Rate the rows of a ``pyarrow.Table``."""
        import pyarrow as pa

        read = [name for name in table.column_names if is_read(name)]
        others = dict.fromkeys(name for name in table.column_names if name not in read)
        rows = table.select(read).to_pylist() if read else [{}] * table.num_rows
        rated = self._rows.rate([{**row, **others} for row in rows])
        if self._rows.dropped:
            _log.warning("bad rows left out so far in this actor, by reason: %s", self._rows.dropped)
        kept = [name for name in table.column_names if not name.startswith(FIELD_PREFIX)]
        found = table.select(kept).take(pa.array(rated.rows, pa.int64()))
        for name, values in rated.columns.items():
            found = found.append_column(name, arrow_column(values, self._rows.columns[name]))
        return found
