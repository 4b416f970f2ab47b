"""``ee-cli generate``: a file of contexts, or a person at a terminal."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efficient_empathy.errors import EmpathyError, require
from efficient_empathy.experts.bases import DEFAULT_BASE
from efficient_empathy.experts.contexts import CONTEXT_MODES, ContextOptions
from efficient_empathy.experts.decoding_options import DecodingOptions
from efficient_empathy.experts.rendering import DEFAULT_SYSTEM
from efficient_empathy.manifest import MANIFEST, json_text
from efficient_empathy.output_path import OutputPath

if TYPE_CHECKING:
    from efficient_empathy.experts.answers import AnswerJob, Outcome
    from efficient_empathy.experts.models import LanguageModel

_SHOWN = 5
"""Answers that --show-gates shows."""
_DRAWING = ("temperature", "top_p", "top_k")


@click.command("generate")
@click.argument("contexts", nargs=-1)
@click.option(
    "--model",
    default=DEFAULT_BASE,
    show_default=True,
    help="Folder of an expert or a mixture; or a base: smollm2, a Hub id, a folder, a .gguf file.",
)
@click.option("--base", default=None, help="Where the base of an expert or mixture is now, if it was moved.")
@click.option("-o", "--out", type=OutputPath(file_okay=False), help="Answers folder.")
@click.option(
    "--examples",
    type=click.Choice(CONTEXT_MODES),
    default="auto",
    show_default=True,
    help="Which turns to answer. auto: the listener's last turn anew, or the next one after the speaker's last word.",
)
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Answer so many contexts, drawn by --seed.")
@click.option(
    "--max-new-tokens", type=int, default=DecodingOptions.max_new_tokens, show_default=True, help="Longest answer."
)
@click.option("--sample", is_flag=True, help="Draw tokens instead of taking the likeliest.")
@click.option(
    "--temperature", type=float, default=None, help=f"With --sample.  [default: {DecodingOptions.temperature}]"
)
@click.option("--top-p", type=float, default=None, help=f"With --sample.  [default: {DecodingOptions.top_p}]")
@click.option(
    "--top-k", type=int, default=None, help=f"With --sample; 0 takes all tokens.  [default: {DecodingOptions.top_k}]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the contexts of --limit and the tokens.")
@click.option("--batch-size", type=int, default=DecodingOptions.batch_size, show_default=True, help="Contexts at once.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--system", default=None, help="Instruction of a base model; '' gives none.")
@click.option(
    "--max-tokens",
    type=click.IntRange(32, 1_000_000),
    default=None,
    help="Prompt and answer of a base model.  [default: 512]",
)
@click.option("--no-nll", is_flag=True, help="Do not measure how likely the references are.")
@click.option("--chat", is_flag=True, help="Talk to the model: one line a turn; /reset, /quit.")
@click.option("--overwrite", is_flag=True, help="Start over in a folder that another run has written.")
@click.option("--show-gates", is_flag=True, help="Show some answers of a mixture, each token coloured by its expert.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON instead of the summary.")
@click.option("--dry-run", is_flag=True, help="Count what there is to answer, and stop.")
def generate_command(**values: Any) -> None:
    """Answer the dialogues of CONTEXTS (files, folders, quoted globs or URLs), or talk to a model with --chat.

    Killed and run again, it finishes what is missing.
    """
    _check(values)
    require("torch", "experts", "generating answers")
    require("transformers", "experts", "generating answers")
    decoding = _decoding(values)
    if values["chat"]:
        _chat(_load(values), decoding)
        return
    from efficient_empathy.experts.answers import count_contexts, write_answers

    job = _job(values, decoding)
    if values["dry_run"]:
        counts = count_contexts(job)
        click.echo(json_text(counts) if values["as_json"] else _lines(counts))
        return
    model = _load(values)
    if values["show_gates"]:
        from efficient_empathy.moe.showing import router_of

        router_of(model)  # a model without a router is refused before it answers, not after
    outcome = write_answers(job, model)
    if outcome.already_done:
        click.echo(f"Already done: '{job.out}' holds the finished result of this very run.", err=True)
    click.echo(json_text(outcome.manifest) if values["as_json"] else _summary(outcome, job.out))
    if values["show_gates"]:
        _show_gates(model, job.out)


def _check(values: dict[str, Any]) -> None:
    if values["chat"]:
        given = [
            name
            for name in ("contexts", "out", "limit", "as_json", "dry_run", "overwrite", "show_gates")
            if values[name]
        ]
        if given:
            name = {"contexts": "CONTEXTS", "as_json": "--json"}.get(given[0], "--" + given[0].replace("_", "-"))
            raise EmpathyError(f"--chat talks to a person and writes nothing: leave {name} out.")
    elif not values["contexts"]:
        raise EmpathyError("there is nothing to answer: name files of dialogues, or talk to the model with --chat.")
    elif values["out"] is None and not values["dry_run"]:
        raise EmpathyError("say where the answers go: -o FOLDER.")
    drawing = [name for name in _DRAWING if values[name] is not None]
    if drawing and not values["sample"]:
        raise EmpathyError(f"--{drawing[0].replace('_', '-')} is for drawn tokens: add --sample, or leave it out.")
    folder = Path(values["model"]) / MANIFEST
    own = [name for name in ("system", "max_tokens") if values[name] is not None]
    if own and folder.is_file():
        raise EmpathyError(
            f"--{own[0].replace('_', '-')} is for base models: '{values['model']}' is prompted as it was trained. Leave it out."
        )


def _decoding(values: dict[str, Any]) -> DecodingOptions:
    drawing = {name: values[name] for name in _DRAWING if values[name] is not None}
    names = ("max_new_tokens", "sample", "seed", "batch_size")
    return DecodingOptions(**{name: values[name] for name in names}, **drawing)


def _job(values: dict[str, Any], decoding: DecodingOptions) -> "AnswerJob":
    from efficient_empathy.experts.answers import AnswerJob

    return AnswerJob(
        inputs=values["contexts"],
        out=values["out"] or Path(),
        contexts=ContextOptions(values["examples"], values["limit"], values["seed"]),
        decoding=decoding,
        nll=not values["no_nll"],
        overwrite=values["overwrite"],
    )


def _load(values: dict[str, Any]) -> "LanguageModel":
    from efficient_empathy.experts.models import LoadOptions, load_language_model

    system = DEFAULT_SYSTEM if values["system"] is None else values["system"] or None
    max_tokens = values["max_tokens"] or LoadOptions.max_tokens
    return load_language_model(values["model"], LoadOptions(values["base"], values["device"], system, max_tokens))


def _chat(model: "LanguageModel", decoding: DecodingOptions) -> None:
    from efficient_empathy.experts.answering import check_room
    from efficient_empathy.experts.chat import HELP, converse

    check_room(model, decoding)
    click.echo(f"Talking to {model.name}. {HELP}", err=True)
    converse(model, decoding, _typed(), lambda text: click.echo(text, nl=False))


def _show_gates(model: "LanguageModel", out: Path) -> None:
    """The first answers of a folder, on stderr: they are to be looked at."""
    from efficient_empathy.experts.answer_folders import read_answers
    from efficient_empathy.moe.showing import show_gates

    answered = [answer for answer in read_answers(out).answers if answer.text]
    for answer in answered[:_SHOWN]:
        click.echo(f"{answer.context[-1].text}\n  {show_gates(model, answer.context, answer.text)}", err=True)


def _typed() -> Iterator[str]:
    """What a person types, or the lines of a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return


def _lines(facts: dict[str, Any]) -> str:
    shown: dict[str, str] = {name.replace("_", " "): _text(value) for name, value in facts.items()}
    width = max(len(name) for name in shown) + 3
    return "\n".join(f"{name:<{width}}{value}" for name, value in shown.items())


def _text(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return ", ".join(f"{count} {reason}" for reason, count in value.items()) or "0"


def _summary(outcome: "Outcome", out: Path) -> str:
    counts = outcome.manifest["counts"]
    facts = {name: counts[name] for name in ("contexts", "answered", "refused", "rejected", "empty", "references")}
    facts["cut at --max-new-tokens"] = counts["length"]
    facts["tokens per answer"] = f"{counts['tokens'] / max(1, counts['answered']):.1f}"
    if outcome.answers and outcome.seconds:
        facts["answers per second"] = f"{outcome.answers / outcome.seconds:.2f}"
    return _lines({**facts, "written to": str(out)})
