"""``ee-cli filter``, ``ee-cli report`` and ``ee-cli bench``."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import click

from efficient_empathy.dialogues import EXAMPLE_MODES, stream_examples
from efficient_empathy.manifest import json_text
from efficient_empathy.scorer.bench import BenchOptions, Measured, bench, recommend
from efficient_empathy.scorer.cascade import DEFAULT_MAX_FLIPS
from efficient_empathy.scorer.commands import rate, rating_options
from efficient_empathy.scorer.devices import DEVICES
from efficient_empathy.scorer.summary import text_table
from efficient_empathy.selection.policies import POLICIES, make_policy
from efficient_empathy.selection.report import report

_POLICY_OPTIONS = (
    click.option(
        "--policy", type=click.Choice(POLICIES), default=None, help="Rule that chooses the subset.  [default: paper]"
    ),
    click.option(
        "--threshold", type=float, default=None, help="T of that rule, on the scale of the scores.  [default: 5]"
    ),
    click.option(
        "--keep",
        multiple=True,
        metavar="NAME=EXPR",
        help="A subset of your own, e.g. 'calm=sensibility>6 and rationality<4'. May be repeated: the first that "
        "matches wins, the rest is discarded.",
    ),
)


def _policy_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_POLICY_OPTIONS):
        function = option(function)
    return function


@click.command("filter")
@rating_options
@_policy_options
@click.option(
    "--max-flips",
    type=float,
    default=DEFAULT_MAX_FLIPS,
    show_default=True,
    help="With --tier auto or cascade: share of decisions that may differ from the transformer's.",
)
def filter_command(policy: str | None, threshold: float | None, keep: tuple[str, ...], **options: Any) -> None:
    """Split the dialogues of INPUTS (files, folders, quoted globs or URLs) into subsets by their scores.

    Writes one folder a subset, and rejected/ for rows that cannot be read. Killed and run again, it finishes what is
    missing.
    """
    rate(make_policy(policy, threshold, keep), **options)


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def report_command(folder: Path, as_json: bool) -> None:
    """Show what a FOLDER holds: the counts of a filtered folder, or the quality of a scorer."""
    text, facts = report(folder)
    click.echo(json_text(facts) if as_json else text)


@click.command("bench")
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "--scorer", "scorer_folder", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Scorer folder."
)
@click.option("--limit", type=click.IntRange(min=1), default=2000, show_default=True, help="Examples to measure on.")
@click.option(
    "--examples",
    type=click.Choice(EXAMPLE_MODES),
    default="every-turn",
    show_default=True,
    help="Which listener turns.",
)
@_policy_options
@click.option("--max-flips", type=float, default=DEFAULT_MAX_FLIPS, show_default=True, help="The cascade's promise.")
@click.option("--usd-per-hour", type=float, default=None, help="What the machine costs, for dollars a million.")
@click.option(
    "--rounds",
    type=int,
    default=BenchOptions.rounds,
    show_default=True,
    help="Passes over the examples; the median counts.",
)
@click.option("--threads", type=click.IntRange(min=1), default=None, help="Threads; default: all cores.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def bench_command(**values: Any) -> None:
    """Measure every tier and precision of a scorer on the dialogues of INPUTS: speed, memory, agreement, cost.

    Each runs in a process of its own. Agreement is with the fp32 transformer.
    """
    options = BenchOptions(
        device=values["device"],
        threads=values["threads"],
        rounds=values["rounds"],
        usd_per_hour=values["usd_per_hour"],
        max_flips=values["max_flips"],
    )
    policy = make_policy(values["policy"], values["threshold"], values["keep"])
    rejected: Counter[str] = Counter()
    examples = list(islice(stream_examples(values["inputs"], values["examples"], rejected), values["limit"]))
    if rejected:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(rejected.items()))
        click.echo(f"left out, since they cannot be read: {rejected.total()} rows ({counts})", err=True)
    measured = bench(values["scorer_folder"], examples, policy, options, lambda line: click.echo(line, err=True))
    best = recommend(measured, options.max_flips)
    if values["as_json"]:
        body = {"examples": len(examples), "measured": [asdict(one) for one in measured], "recommended": asdict(best)}
        click.echo(json_text(body))
        return
    click.echo(text_table(_BENCH_HEADER, [_bench_row(one) for one in measured]))
    precision = "" if best.tier == "fast" else f" --precision {best.precision}"
    click.echo(
        f"\nrecommended: --tier {best.tier}{precision}: the fastest with at most {100 * options.max_flips:g} % of decisions "
        "other than the fp32 transformer's"
    )


_BENCH_HEADER = (
    *("tier", "precision", "examples/s", "tokens/s", "padding", "MB", "Spearman", "flips", "by fast", "$/million"),
)


def _bench_row(one: Measured) -> list[str]:
    return [
        one.tier,
        one.precision,
        f"{one.examples_per_second:,.0f}",
        _or_dash(one.tokens_per_second, "{:,.0f}"),
        _or_dash(one.padding_share, "{:.1%}"),
        _or_dash(one.rss_mb, "{:,.0f}"),
        f"{min(one.spearman):.4f}",
        f"{one.flips:.2%}",
        _or_dash(one.fast_share, "{:.0%}"),
        _or_dash(one.usd_per_million, "{:.2g}"),
    ]


def _or_dash(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)
