"""The command-line options of judging, for every command that may ask a judge, and what it shows meanwhile."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from efficient_empathy.distill.asking import Progress
from efficient_empathy.distill.options import DEFAULT_KEY_ENV, JudgeOptions
from efficient_empathy.errors import EmpathyError

_Function = TypeVar("_Function", bound=Callable[..., Any])

Options = dict[str, Callable[[Any], Any]]
"""Click options by the names of their arguments, in the order in which the help shows them."""
_FILE = click.Path(path_type=Path, dir_okay=False)


def judge_option(required: bool) -> Options:
    """The option that names the judge."""
    judge = click.option(
        "--judge",
        required=required,
        metavar="KIND:MODEL",
        help="openai:MODEL (any OpenAI-compatible server) or local:PATH-OR-ID (a language model in this process).",
    )
    return {"judge": judge}


ASKING_OPTIONS: Options = {
    "store": click.option(
        "--store", type=_FILE, help="SQLite file that keeps every answer.  [default: beside the output]"
    ),
    "base_url": click.option("--base-url", metavar="URL", help="Address of the server.  [default: OpenAI]"),
    "api_key_env": click.option(
        "--api-key-env",
        default=DEFAULT_KEY_ENV,
        show_default=True,
        metavar="NAME",
        help="Environment variable that holds the key; servers of your own need none.",
    ),
    "concurrency": click.option(
        "--concurrency",
        type=click.IntRange(1, 256),
        default=JudgeOptions.concurrency,
        show_default=True,
        help="Questions at once.",
    ),
    "max_usd": click.option(
        "--max-usd", type=click.FloatRange(min=0), help="Stop before the answers could cost more dollars than this."
    ),
    "prices": click.option("--prices", type=_FILE, help="YAML price table, laid over the one shipped."),
    "retry_unscored": click.option(
        "--retry-unscored", is_flag=True, help="Ask again where an answer could not be read."
    ),
    "max_tokens": click.option(
        "--max-tokens",
        type=click.IntRange(16, 100_000),
        default=JudgeOptions.max_tokens,
        show_default=True,
        help="Longest answer; a model that thinks aloud needs thousands.",
    ),
    "timeout": click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=JudgeOptions.timeout,
        show_default=True,
        help="Seconds a try.",
    ),
}
"""How a judge is asked, whatever the question: the fields of ``JudgeOptions`` that every command with a judge takes."""

_LABEL_OPTIONS: Options = {
    "rubric": click.option("--rubric", type=_FILE, help="YAML rubric.  [default: sensibility and rationality, 0-10]"),
    "budget": click.option(
        "--budget",
        type=click.IntRange(1),
        default=JudgeOptions.budget,
        show_default=True,
        help="Examples to have judged, at most; drawn by --seed, spread over conversations.",
    ),
}


def gather(options: Options, build: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]) -> Any:
    """A decorator that adds options to a command and hands their values over together.

    Args:
        options: to add.
        build: given their values and those of the command's other options, the arguments that the command gets beside
            its own.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(**values: Any) -> Any:
            own = {name: values.pop(name) for name in options}
            return function(**build(own, values), **values)

        decorated: Any = call
        for option in reversed(options.values()):
            decorated = option(decorated)
        return decorated

    return decorate


def judge_options(required: bool = True) -> Callable[[_Function], _Function]:
    """Add the options of judging to a command that has ``--seed``.

    The command gets them as one argument, ``judging``: a ``JudgeOptions`` or, where no judge was named, None.

    Args:
        required: whether the command cannot do without a judge; if it can, it gets ``rubric`` beside ``judging``.
    """

    def build(own: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        if own["judge"] is None:
            _refuse_unused(own.keys() - {"judge", "rubric"})
        judging = None if own["judge"] is None else JudgeOptions(**own, seed=values["seed"])
        # Without a judge it says what a label file holds.
        return {"judging": judging} if required else {"judging": judging, "rubric": own["rubric"]}

    decorate: Callable[[_Function], _Function] = gather(
        {**judge_option(required), **_LABEL_OPTIONS, **ASKING_OPTIONS}, build
    )
    return decorate


def _refuse_unused(names: Iterable[str]) -> None:
    """Raise EmpathyError for an option of judging that was given on the command line without a judge."""
    context = click.get_current_context()
    given = [name for name in sorted(names) if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise EmpathyError(
            f"--{given[0].replace('_', '-')} is for asking a judge, and --judge names none. Leave it out."
        )


@contextlib.contextmanager
def judging_progress(quiet: bool = False) -> Iterator[Callable[[Progress], None]]:
    """Show on stderr how far the judging is, with rate, remaining time and cost; nothing where nobody watches.

    Args:
        quiet: show nothing in any case.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("judging"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("judging", total=None, note="")

        def show(state: Progress) -> None:
            cost = "" if state.usd is None else f", ${state.usd:.4f}"
            bar.update(task, completed=state.done, total=state.total, note=f"{state.unscored} unscored{cost}")
            if state.done == state.total:
                bar.stop()  # what follows has progress of its own

        yield show
