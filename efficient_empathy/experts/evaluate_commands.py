"""``ee-cli evaluate``."""

from pathlib import Path

import click

from efficient_empathy.distill.judge_options import judging_progress
from efficient_empathy.experts.evaluation import EvaluateOptions
from efficient_empathy.experts.evaluation_files import PAIRWISE, as_dict, evaluate_folders
from efficient_empathy.experts.pairwise_options import PairwiseOptions, pairwise_options
from efficient_empathy.experts.pairwise_report import pairwise_section
from efficient_empathy.experts.tables import text_report
from efficient_empathy.manifest import json_text
from efficient_empathy.output_path import OutputPath


@click.command("evaluate")
@click.argument("systems", nargs=-1, required=True, metavar="[NAME=]FOLDER...")
@click.option(
    "--scorer",
    "scorers",
    multiple=True,
    metavar="[NAME=]FOLDER",
    help="Scorer folder to judge the answers with. May be repeated; let one be a judge that did not choose the data.",
)
@click.option("-o", "--out", type=OutputPath(file_okay=False), required=True, help="Output folder.")
@click.option("--baseline", metavar="NAME", help="System to compare the others with.  [default: the first]")
@click.option(
    "--compare",
    multiple=True,
    metavar="FIGURE",
    help="Compare these figures only: a name, or a quoted pattern such as 'paper/*'. May be repeated.",
)
@click.option(
    "--resamples",
    type=click.IntRange(20, 100_000),
    default=EvaluateOptions.resamples,
    show_default=True,
    help="How often the conversations are drawn, for intervals and p-values.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws the conversations.")
@pairwise_options()
@click.option(
    "--dry-run", is_flag=True, help="With --judge: print what it would cost after the figures, and ask nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate_command(
    systems: tuple[str, ...],
    scorers: tuple[str, ...],
    out: Path,
    baseline: str | None,
    compare: tuple[str, ...],
    resamples: int,
    seed: int,
    pairing: PairwiseOptions | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compare systems by the answers that `ee-cli generate` saved for the same contexts.

    Each FOLDER is a system, called by its own name or by NAME; NAME=FOLDER,FOLDER,... is one system with several training
    seeds. Nothing is generated and no model is run but the scorers, and the judge where one is named: it then says of
    pairs of answers, in both orders, which it prefers.
    """
    options = EvaluateOptions(baseline, resamples, seed, compare)
    evaluation = evaluate_folders(systems, scorers, options, out)
    text, facts = text_report(evaluation), as_dict(evaluation)
    if pairing is not None:
        with judging_progress() as progress:
            pairs = out / PAIRWISE
            section = pairwise_section(evaluation.folders, pairing, pairs, evaluation.baseline, dry_run, progress)
        text, facts = f"{text}\n\n{section.text}", {**facts, "pairwise": section.facts}
    click.echo(json_text(facts) if as_json else text)
