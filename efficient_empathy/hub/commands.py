"""``ee-cli push`` and ``ee-cli pull``."""

from dataclasses import asdict
from pathlib import Path

import click

from efficient_empathy.hub.pulling import pull
from efficient_empathy.hub.pushing import plan_push, push
from efficient_empathy.manifest import json_text
from efficient_empathy.output_path import OutputPath


@click.command("push")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Only its owner sees the repository; one that is public is refused.")
@click.option("--revision", metavar="BRANCH", help="Branch to push to; made if it is not there.  [default: main]")
@click.option("--dry-run", is_flag=True, help="Check the folder, print what would be pushed, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def push_command(folder: Path, repo: str, private: bool, revision: str | None, dry_run: bool, as_json: bool) -> None:
    """Put FOLDER, a scorer, an expert or a mixture, on the Hugging Face Hub, with its card.

    Every file is checked first, and only what the manifest vouches for goes. The token is that of HF_TOKEN or of hf auth login.
    """
    done = plan_push(folder, repo, revision) if dry_run else push(folder, repo, private, revision)
    if as_json:
        click.echo(json_text(asdict(done)))
        return
    for name, size in done.files.items():
        click.echo(f"{size:>13,}  {name}")
    for name in done.left_here:
        click.echo(f"{'stays here':>13}  {name}")
    total = f"{len(done.files)} files, {sum(done.files.values()):,} bytes"
    if dry_run:
        click.echo(f"would push this {done.kind} to {repo} ({done.revision}): {total}. Nothing was pushed.")
    else:
        click.echo(f"pushed this {done.kind} to {repo} ({done.revision}): {total}, commit {done.commit}")


@click.command("pull")
@click.argument("repo", metavar="OWNER/NAME")
@click.option("-o", "--out", type=OutputPath(), required=True, help="Folder to write.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit hash.  [default: main]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def pull_command(repo: str, out: Path, revision: str | None, as_json: bool) -> None:
    """Fetch a scorer, an expert or a mixture from the Hugging Face Hub, and check every file of it.

    The commit is kept in origin.json, and in the manifests of what is made with the folder. With HF_HUB_OFFLINE set it comes from
    the cache.
    """
    done = pull(repo, out, revision)
    if as_json:
        click.echo(json_text(asdict(done)))
        return
    click.echo(f"{out}: {done.files} files of a {done.kind}, as they were written; {repo}@{done.origin.commit}")
