"""``ee-cli verify`` and ``ee-cli explain``."""

from pathlib import Path

import click

from efficient_empathy.audit.explaining import as_dict, explain
from efficient_empathy.audit.explaining import describe as explained
from efficient_empathy.audit.verifying import describe, verify
from efficient_empathy.manifest import json_text

_search_option = click.option(
    "--search",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder in which what it was made from may lie, if that is not near. May be repeated.",
)


@click.command("verify")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FOLDER...")
@click.option("--deep", is_flag=True, help="Read every row, too: is it in the subset that the policy gives it?")
@_search_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify_command(folders: tuple[Path, ...], deep: bool, search: tuple[Path, ...], as_json: bool) -> None:
    """Check folders that ee-cli wrote, or label files: every file against its hash, the counts, and the chain back.

    The chain leads to scorer, labels, rubric and data: each is found by its hash near the folder, and is the same, changed,
    or moved or gone. Exits 1 if something was changed, is missing, or does not add up; 2 if a folder cannot be read.
    """
    results = [verify(folder, deep, search) for folder in folders]
    if as_json:
        click.echo(json_text([result.as_dict() for result in results]))
    else:
        for result in results:
            for line in describe(result).splitlines():
                click.echo(line)  # one at a time: a reader that goes away is noticed
    if any(result.problems for result in results):
        click.get_current_context().exit(1)


@click.command("explain")
@click.argument("name", metavar="ID")
@click.option(
    "--in", "folder", required=True, type=click.Path(path_type=Path), help="Folder that filter or score wrote."
)
@_search_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def explain_command(name: str, folder: Path, search: tuple[Path, ...], as_json: bool) -> None:
    """Say why the example ID is in the subset where it is: its scores, the policy with the numbers put in, what would change it.

    ID is what stands in ee_id; a conversation's id gives all its examples. A row that was rejected is found by its id or as
    FILE:LINE.
    """
    found, scorer = explain(folder, name, search)
    click.echo(json_text(as_dict(found, scorer)) if as_json else explained(found, scorer))
