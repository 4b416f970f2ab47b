"""``ee-cli label`` and ``ee-cli distill``."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from efficient_empathy.dialogues import EXAMPLE_MODES, ExampleMode
from efficient_empathy.distill.from_files import DistillRequest, distill_from_files
from efficient_empathy.distill.judge_options import judge_options, judging_progress
from efficient_empathy.distill.label_report import LabelPlan, LabelReport
from efficient_empathy.distill.labelling import label, plan_labels
from efficient_empathy.distill.options import JudgeOptions
from efficient_empathy.distill.settings import DEFAULT_BACKBONE, EFFORTS, DistillOptions, FastOptions, TrainingOptions
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import json_text
from efficient_empathy.output_path import OutputPath
from efficient_empathy.selection.report import report

_examples_option = click.option(
    "--examples",
    type=click.Choice(EXAMPLE_MODES),
    default="every-turn",
    show_default=True,
    help="Which listener turns of a dialogue to take.",
)


@click.command("label")
@click.option(
    "--dialogues",
    multiple=True,
    required=True,
    metavar="FILE",
    help="File, folder, quoted glob or URL of dialogues. May be repeated.",
)
@click.option("-o", "--out", type=OutputPath(dir_okay=False), required=True, help="Label file (JSONL).")
@judge_options()
@_examples_option
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the examples.")
@click.option("--dry-run", is_flag=True, help="Print calls, tokens and dollars, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def label_command(
    dialogues: tuple[str, ...],
    out: Path,
    judging: JudgeOptions,
    examples: ExampleMode,
    seed: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Have a judge rate some examples once, and write its scores to a label file.

    Every answer is kept in an SQLite file the moment it arrives: killed and run again, nothing that was answered is
    asked twice. An answer that cannot be read is kept and counted, never given a score.
    """
    if dry_run:
        plan = plan_labels(dialogues, out, judging, examples)
        click.echo(_json(plan) if as_json else _plan_text(plan, judging))
        return
    with judging_progress() as progress:
        report = label(dialogues, out, judging, examples, progress)
    click.echo(_json(report) if as_json else _report_text(report))
    if report.scored == 0:
        click.get_current_context().exit(1)


def _json(result: Any) -> str:
    fields = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(result).items()}
    return json_text(fields)


def _plan_text(plan: LabelPlan, judging: JudgeOptions) -> str:
    lines = [
        f"examples            {plan.examples}",
        f"already answered    {plan.stored}",
        f"calls               {plan.calls}",
        f"prompt tokens       about {plan.prompt_tokens}",
        f"completion tokens   about {plan.completion_tokens}",
    ]
    if plan.usd is None:
        lines.append(f"dollars             not known: no price for '{judging.judge}' at this address; see --prices")
    else:
        lines.append(f"dollars             about {plan.usd:.4f}")
    return "\n".join(lines + _rejected(plan.rejected))


def _report_text(report: LabelReport) -> str:
    reasons = "".join(f", {count} {reason}" for reason, count in report.unscored.items())
    lines = [
        f"labels              {report.labels}",
        f"scored              {report.scored} of {report.examples}",
        f"unscored            {sum(report.unscored.values())}{reasons and f' ({reasons[2:]})'}",
        f"asked now           {report.asked}",
        f"tokens              {report.prompt_tokens} prompt, {report.completion_tokens} completion",
        f"dollars             {'not known' if report.usd is None else f'{report.usd:.4f}'}",
    ]
    if report.not_asked:
        lines.append(f"not asked           {report.not_asked}: --max-usd was reached; raise it and run again to go on")
    return "\n".join(lines + _rejected(report.rejected))


def _rejected(rejected: dict[str, int]) -> list[str]:
    if not rejected:
        return []
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
    return [f"unreadable rows     {sum(rejected.values())} ({reasons})"]


@click.command("distill")
@click.option(
    "--dialogues",
    multiple=True,
    metavar="FILE",
    help="File, folder, quoted glob or URL of dialogues: what the labels are about, and the unlabelled pool.",
)
@click.option("--labels", type=click.Path(path_type=Path, dir_okay=False), help="Label file, instead of a judge.")
@click.option("-o", "--out", type=OutputPath(file_okay=False), required=True, help="Scorer folder.")
@judge_options(required=False)
@_examples_option
@click.option(
    "--effort",
    type=click.Choice(EFFORTS),
    default="normal",
    show_default=True,
    help="high also learns from the unlabelled dialogues: better scores, several times the time.",
)
@click.option(
    "--teacher",
    metavar="ENCODER",
    help="With --effort high: a larger encoder to learn from, a folder or a Hub id; the scorer stays small.",
)
@click.option("--backbone", default=DEFAULT_BACKBONE, show_default=True, help="minilm, a folder, or a Hub id.")
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    help="Encoder layers that the scorer keeps, from the bottom; fewer are faster.  [default: 5 of minilm's 6, else all]",
)
@click.option(
    "--epochs",
    type=click.IntRange(1, 100),
    default=TrainingOptions.epochs,
    show_default=True,
    help="Passes over the labels, at most.",
)
@click.option(
    "--max-length",
    type=click.IntRange(16, 8192),
    default=DistillOptions.max_tokens,
    show_default=True,
    help="Longest input, in tokens.",
)
@click.option(
    "--holdout",
    type=click.FloatRange(0.05, 0.5),
    default=DistillOptions.holdout,
    show_default=True,
    help="Share of the labels to measure on instead of training.",
)
@click.option(
    "--fast-examples",
    type=click.IntRange(min=0),
    default=FastOptions.rated_examples,
    show_default=True,
    help="Unlabelled examples that the transformer rates for the fast tier, at most; 0: no fast tier.",
)
@click.option("--fp16", is_flag=True, help="Make an fp16 file as well, for GPUs.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the examples, the split and the weights.")
@click.option("--dry-run", is_flag=True, help="Print what the judge would cost, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def distill_command(**values: Any) -> None:
    """Turn judged examples into a scorer folder: train, export, check, measure.

    The labels come from a judge (--judge, asked once, every answer kept) or from a file (--labels). The folder holds ONNX
    files, their measured quality and a model card; scoring with it needs neither torch nor a network.
    """
    request = DistillRequest(
        dialogues=values["dialogues"],
        labels=values["labels"],
        judging=values["judging"],
        rubric=values["rubric"],
        examples=values["examples"],
        out=values["out"],
        options=_distill_options(values),
    )
    if values["dry_run"]:
        if request.judging is None:
            raise EmpathyError("--dry-run says what a judge would cost; with --labels nothing is asked.")
        plan = plan_labels(request.dialogues, request.label_file, request.judging, request.examples)
        click.echo(_json(plan) if values["as_json"] else _plan_text(plan, request.judging))
        return
    with judging_progress(quiet=request.judging is None) as progress:
        distill_from_files(request, progress)
    text, facts = report(request.out)
    click.echo(json_text(facts) if values["as_json"] else text)


def _distill_options(values: dict[str, Any]) -> DistillOptions:
    names = ("backbone", "teacher", "layers", "effort", "holdout", "seed", "fp16")
    given = {name: values[name] for name in names}
    fast = FastOptions(rated_examples=values["fast_examples"])
    # --max-tokens is the judge's: the length of its answers.
    return DistillOptions(
        training=TrainingOptions(epochs=values["epochs"]), fast=fast, max_tokens=values["max_length"], **given
    )
