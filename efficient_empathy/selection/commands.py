"""``ee-cli filter`` and ``ee-cli report``."""

from pathlib import Path
from typing import Any

import click

from efficient_empathy.manifest import pretty_json
from efficient_empathy.scorer.commands import rate, rating_options
from efficient_empathy.selection.policies import POLICIES, make_policy
from efficient_empathy.selection.report import report


@click.command("filter")
@rating_options
@click.option(
    "--policy", type=click.Choice(POLICIES), default=None, help="Rule that chooses the subset.  [default: paper]"
)
@click.option("--threshold", type=float, default=None, help="T of that rule, on the scale of the scores.  [default: 5]")
@click.option(
    "--keep",
    multiple=True,
    metavar="NAME=EXPR",
    help="A subset of your own, e.g. 'calm=sensibility>6 and rationality<4'. May be repeated: the first that "
    "matches wins, the rest is discarded.",
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
    click.echo(pretty_json(facts).decode().rstrip() if as_json else text)
