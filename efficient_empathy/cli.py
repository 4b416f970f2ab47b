"""The command line: names each command and where it lives; a command's module is imported when it is called."""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from efficient_empathy import __version__
from efficient_empathy.errors import EmpathyError

_COMMANDS = {
    "label": ("distill.commands", "Have a judge score a few dialogues, once; nothing paid for is asked twice."),
    "distill": ("distill.commands", "Turn judged examples into a scorer folder: train, export, check, report."),
    "score": ("scorer.commands", "Add a scorer's scores to every dialogue."),
    "filter": ("selection.commands", "Split dialogues into sensibility, rationality and discarded."),
    "bench": (
        "selection.commands",
        "Measure a scorer's tiers on your machine and rows: speed, memory, agreement, cost.",
    ),
    "explain": ("audit.commands", "Say why an example is in the subset where it is."),
    "report": ("selection.commands", "Show what a scorer folder or a subsets folder holds."),
    "train-expert": (
        "experts.commands",
        "Tune a language model on a subset: a LoRA adapter, with controls of the same cost.",
    ),
    "train-moe": ("moe.commands", "Train a router over experts: a mixture, and whether it tells their subsets apart."),
    "merge-moe": ("moe.commands", "Make a plain PEFT adapter of a mixture, and say what that costs."),
    "generate": (
        "experts.generate_commands",
        "Answer a file of contexts, or a person at the terminal, with a base, an expert or a mixture.",
    ),
    "evaluate": ("experts.evaluate_commands", "Judge saved answers: metrics, scorers, intervals, paired differences."),
    "doctor": ("doctor", "Say which devices, providers and extras are there, and how to mend what is not."),
    "verify": ("audit.commands", "Check a folder's files, its counts, and the chain back to scorer, labels and data."),
    "push": ("hub.commands", "Put a scorer, an expert or a mixture on the Hugging Face Hub."),
    "pull": ("hub.commands", "Fetch one from there, checked against its manifest."),
}


_READER_GONE = 128 + 13
"""Exit code of what ends by SIGPIPE, as a shell tells it; Python turns the signal into an exception."""


@contextlib.contextmanager
def _ended_by_reader() -> Iterator[None]:
    """End without a word where the reader of our output went away, as `| head` does; not with 0, for the work may not be done."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_READER_GONE)


class _LazyGroup(click.Group):
    """Shows one line a command without importing it; imports the module of the command that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"efficient_empathy.{_COMMANDS[name][0]}")
        command = getattr(module, f"{name.replace('-', '_')}_command")
        if not any(parameter.name == "config" for parameter in command.params):
            command.params.append(_config_option())
        return command

    def make_context(self, *args: Any, **extra: Any) -> click.Context:  # prints --help and --version
        with _ended_by_reader():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _ended_by_reader():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _config_option() -> click.Option:
    return click.Option(
        ["--config"],
        type=click.Path(dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="YAML file of option values; flags win over it.",
    )


def _read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    import yaml  # only where a file is given: --help stays fast

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EmpathyError(f"--config: there is no file '{path}'.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EmpathyError(f"--config: cannot read '{path}' as UTF-8 text: {error}.") from error
    except yaml.YAMLError as error:
        raise EmpathyError(f"--config: '{path}' is not valid YAML: {error}") from error
    if values is None:
        return  # an empty file
    if not isinstance(values, Mapping):
        raise EmpathyError(f"--config: '{path}' must hold a mapping of option names to values.")
    ctx.default_map = {**(ctx.default_map or {}), **_by_parameter(ctx, path, values)}


def _by_parameter(ctx: click.Context, path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    # An option's flag and its Python name may differ (--keep fills `expressions`): both are understood.
    known = {name: parameter for parameter in ctx.command.params for name in _names(parameter)}
    by_name = {}
    for key, value in values.items():
        parameter = known.get(str(key).replace("_", "-"))
        if parameter is None or parameter.name is None:
            options = ", ".join(sorted({_names(p)[0] for p in ctx.command.params} - {"config"}))
            raise EmpathyError(f"--config: '{path}' sets '{key}', which this command does not have. It has: {options}.")
        takes_many = parameter.nargs != 1 or getattr(parameter, "multiple", False)
        if isinstance(value, Mapping) or (isinstance(value, list) and not takes_many):
            raise EmpathyError(f"--config: '{path}' gives '{key}' several values; it takes one.")
        given = [_as_typed(one) for one in value] if isinstance(value, list) else _as_typed(value)
        by_name[parameter.name] = [given] if takes_many and not isinstance(given, list) else given
    return by_name


def _as_typed(value: Any) -> Any:
    """A YAML value as a flag would have it, so that it is read and refused like one."""
    return value if value is None or isinstance(value, bool) else str(value)


def _names(parameter: click.Parameter) -> list[str]:
    """What a file may call a parameter: its long flags first, then its Python name, all with dashes."""
    flags = [flag[2:] for flag in parameter.opts if flag.startswith("--")]
    return [*flags, str(parameter.name).replace("_", "-")]


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ee-cli")
def app() -> None:
    """Turn a few LLM judgements into a scorer cheap enough to rate every dialogue."""


class _Stderr(logging.StreamHandler):
    """Writes to what is stderr at the moment: a bar that moves takes it over to write above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        """Nothing is kept."""


def main() -> None:
    """Run ``ee-cli``: exit 0 done, 1 a check said no, 2 the user can mend it, 141 nobody reads the output any more."""
    log = logging.getLogger("efficient_empathy")
    log.setLevel(logging.INFO)
    log.addHandler(_Stderr())  # results alone go to stdout
    try:
        # Outside of its standalone mode click hands back the code of ctx.exit(), and None where nothing exits.
        sys.exit(app(standalone_mode=False, auto_envvar_prefix="EE") or 0)
    except click.Abort:
        click.echo("Stopped. Run the same command again to go on from here.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except EmpathyError as error:
        click.echo(f"Error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except PermissionError as error:
        click.echo(f"Error: no permission for '{error.filename}'. Change its rights, or choose another path.", err=True)
        sys.exit(2)
