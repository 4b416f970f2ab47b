"""``ee-cli score``, and the options that it shares with ``ee-cli filter``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import json_text
from efficient_empathy.output_path import OutputPath
from efficient_empathy.scorer.cascade import DEFAULT_MAX_FLIPS
from efficient_empathy.scorer.devices import DEVICES
from efficient_empathy.scorer.engine import describe_run, run
from efficient_empathy.scorer.job import EXAMPLE_MODES, OUTPUT_FORMATS, Job, Route
from efficient_empathy.scorer.progress import PROGRESS, progress_for
from efficient_empathy.scorer.ray_options import RayOptions
from efficient_empathy.scorer.scorer import PRECISIONS, TIERS, Scorer
from efficient_empathy.scorer.summary import subsets_summary, text_table
from efficient_empathy.scorer.tokenising import TOKENIZERS

_Function = TypeVar("_Function", bound=Callable[..., Any])

_OPTIONS = (
    click.argument("inputs", nargs=-1, required=True),
    click.option(
        "--scorer", "scorer_folder", required=True, metavar="DIR", help="Scorer folder, as written by distill."
    ),
    click.option("-o", "--out", required=True, type=OutputPath(), help="Output folder."),
    click.option(
        "--examples",
        type=click.Choice(EXAMPLE_MODES),
        default="every-turn",
        show_default=True,
        help="Which listener turns to rate.",
    ),
    click.option(
        "--format",
        "output_format",
        type=click.Choice(OUTPUT_FORMATS),
        default="jsonl",
        show_default=True,
        help="Output container.",
    ),
    click.option(
        "--device",
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        help="Where to run; auto: CUDA where it is there, else the CPU.",
    ),
    click.option(
        "--tier",
        type=click.Choice(TIERS),
        default="auto",
        show_default=True,
        help="fast: far cheaper, less exact; cascade (filter only): fast, with the transformer near the thresholds; auto: "
        "filter takes the cheapest that keeps --max-flips, score the transformer.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="auto",
        show_default=True,
        help="Which model file; auto: int8 on the CPU, fp16 on a GPU, where the scorer has it, else fp32.",
    ),
    click.option(
        "--workers",
        default="auto",
        show_default=True,
        metavar="N|auto",
        help="Processes (with --engine ray: actors) that rate; auto: one a core, one on a GPU; with --engine ray what fits.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=None,
        help="Threads of each worker; default: the cores divided among the workers, with --engine ray 1.",
    ),
    click.option(
        "--tokenizer",
        type=click.Choice(TOKENIZERS),
        default="auto",
        show_default=True,
        help="Which library tokenises; auto: tokie where it is installed and gives the same ids.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Rate on this machine, or in the actors of a Ray cluster.",
    ),
    click.option(
        "--address",
        metavar="HOST:PORT",
        default=None,
        help="With --engine ray: a running cluster, auto for the one of this machine, local for a Ray of its own; "
        "default: RAY_ADDRESS, else local.",
    ),
    click.option(
        "--gpus",
        type=float,
        default=None,
        help="With --engine ray: GPUs of each actor, e.g. 0.25; default: 1 with --device cuda, else 0.",
    ),
    click.option(
        "--max-rejected",
        type=float,
        default=0.05,
        show_default=True,
        help="Share of unreadable rows at which to stop; 1 never stops.",
    ),
    click.option("--overwrite", is_flag=True, help="Start over in a folder that another run has written."),
    click.option(
        "--progress",
        type=click.Choice(PROGRESS),
        default="auto",
        show_default=True,
        help="On stderr; auto: a bar on a terminal, else nothing; lines: for logs; json: events for machines.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON instead of the table."),
    click.option("--dry-run", is_flag=True, help="Print what would be done, and stop."),
)


def rating_options(function: _Function) -> _Function:
    """Add the arguments and options that every command has which rates dialogues."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command("score")
@rating_options
def score_command(**options: Any) -> None:
    """Add a scorer's scores to every dialogue of INPUTS: files, folders, quoted globs or URLs.

    Killed and run again, it finishes what is missing.
    """
    rate(None, **options)


def rate(
    route: Route | None,
    *,
    inputs: tuple[str, ...],
    out: Path,
    as_json: bool,
    dry_run: bool,
    max_flips: float = DEFAULT_MAX_FLIPS,
    **options: Any,
) -> None:
    """Run a job as the command line asks, and print what it came to.

    Args:
        route: the policy; None only scores.
        inputs: what to rate.
        out: the output folder.
        as_json: print JSON instead of a table.
        dry_run: print what would be done.
        max_flips: share of the route's decisions that may differ from the transformer's.
        options: the rest of ``rating_options``.
    """
    ray = _ray_options(options["engine"], options["address"], options["gpus"], options["device"])
    job = Job(
        inputs,
        out,
        examples=options["examples"],
        format=options["output_format"],
        max_rejected=options["max_rejected"],
        overwrite=options["overwrite"],
        workers=_workers(options["workers"]),
        ray=ray,
    )
    precision = options["precision"]
    scorer = Scorer.load(
        options["scorer_folder"],
        # The actors' GPUs need not be here; what "auto" would choose there is chosen here.
        device="cpu" if ray else options["device"],
        precision="fp32" if precision == "auto" and ray and ray.gpus else precision,
        threads=options["threads"],
        tokenizer=options["tokenizer"],
        tier=options["tier"],
        policy=route,
        max_flips=max_flips,
    )
    if dry_run:
        _show_plan(describe_run(job, scorer, route), as_json)
        return
    outcome = run(job, scorer, route, progress_for(lambda line: click.echo(line, err=True), options["progress"]))
    if outcome.already_done:
        click.echo(f"Already done: '{out}' holds the finished result of this very run.", err=True)
    click.echo(json_text(outcome.manifest) if as_json else subsets_summary(outcome.manifest, out))


def _ray_options(engine: str, address: str | None, gpus: float | None, device: str) -> RayOptions | None:
    if engine == "local":
        if address is not None or gpus is not None:
            name = "--address" if address is not None else "--gpus"
            raise EmpathyError(f"{name} is for --engine ray; add that, or leave {name} out.")
        return None
    if device not in ("auto", "cpu", "cuda"):
        raise EmpathyError(
            f"--engine ray runs on cpu or cuda, not on {device}; rate on one machine with --engine local."
        )
    options = RayOptions(address, gpus if gpus is not None else float(device == "cuda"))
    if device not in ("auto", options.device):
        raise EmpathyError(f"--gpus {options.gpus:g} and --device {device} exclude each other; leave one of them out.")
    return options


def _workers(text: str) -> int | Literal["auto"]:
    """The number of workers, which may also stand in a file or a variable; ``Job`` checks its range."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise EmpathyError(f"--workers must be auto or a whole number from 1, not '{text}'.") from None


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json_text(plan))
        return
    rows = [[record["path"], "?" if record["bytes"] is None else f"{record['bytes']:,}"] for record in plan["inputs"]]
    click.echo(text_table(["input", "bytes"], [*rows, ["all", f"{plan['bytes']:,}"]]))
    click.echo(f"\nunits: {plan['units']}, done before: {plan['units_done']}")
    click.echo(f"scorer: {plan['scorer']['folder']}, dimensions {', '.join(plan['scorer']['dimensions'])}")
    if plan["policy"] is not None:
        click.echo(f"policy: {json_text(plan['policy'])}")
    click.echo(f"would write to: {plan['out']} ({', '.join(plan['folders'])}). Nothing was written.")
