"""``ee-cli doctor`` and ``ee-cli verify``: what is here and what is broken, and whether a folder is as it was written."""

from pathlib import Path
from typing import Any

import click

from efficient_empathy.environment import PACKAGE, environment, problems
from efficient_empathy.manifest import changed_files, pretty_json, read_manifest


def _environment_text(facts: dict[str, Any]) -> str:
    memory = f", {facts['memory_gib']} GiB of memory" if facts["memory_gib"] else ""
    lines = [
        f"{PACKAGE} {facts['version'] or 'from its source'}",
        f"Python {facts['python']}, {facts['platform']}, {facts['cores']} usable cores{memory}",
        "",
    ]
    if not facts["extras"]:
        lines.append(f"extras   not known: {PACKAGE} is not installed   mend: pip install -e . in its folder")
    for extra, found in facts["extras"].items():
        lines.append(f"{extra:<8} {found['state']:<8} {found['purpose']}")
        have = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
        lack = ", ".join(name for name, version in found["packages"].items() if not version)
        lines += [f"{'':<9}{have}"] if have else []
        rival = {"cpu": "gpu", "gpu": "cpu"}.get(extra)
        if rival and facts["extras"].get(rival, {}).get("state") == "present":
            lines += [f"{'':<9}not needed: [{rival}] is here, and the two exclude each other"] if lack else []
        elif lack:
            lines.append(f"{'':<9}missing: {lack}   mend: {found['mend']}")
    ort, torch = facts["onnxruntime"], facts["torch"]
    lines += [
        "",
        f"ONNX Runtime {ort['version']}: {', '.join(ort['providers'])}" if ort["version"] else "no ONNX Runtime",
    ]
    lines.append(
        _torch_text(torch) if torch["version"] else "no torch (only judging with local models and training need it)"
    )
    return "\n".join(lines)


def _torch_text(torch: dict[str, Any]) -> str:
    bf16 = [name for name, able in (("CPU", torch["bf16_cpu"]), ("CUDA", torch["bf16_cuda"])) if able]
    return (
        f"torch {torch['version']}: CUDA {torch['cuda'] or 'no'}; bf16 on {' and '.join(bf16) or 'neither CPU nor GPU'}; "
        f"{torch['threads']} threads"
    )


@click.command("doctor")
@click.option("--hash", "check_backbone", is_flag=True, help="Also verify the default backbone's weights (seconds).")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def doctor_command(check_backbone: bool, as_json: bool) -> None:
    """Say which devices, providers and extras are there, and how to mend what is not.

    Exits 1 if something is broken; an extra that is absent is not.
    """
    broken = problems(check_backbone)
    facts = {**environment(), "problems": broken}
    if as_json:
        click.echo(pretty_json(facts).decode().rstrip())
    else:
        click.echo(_environment_text(facts))
        click.echo()
        for problem in broken:
            click.echo(f"BROKEN: {problem['what']}.\n  Mend: {problem['mend']}")
        click.echo(f"{len(broken)} broken." if broken else "Nothing is broken.")
    if broken:
        click.get_current_context().exit(1)


def check_folder(folder: Path) -> dict[str, Any]:
    """Compare a folder with its manifest: its kind, number of files, and ``problems``, one sentence a file.

    Raises:
        EmpathyError: the folder has no manifest that can be read.
    """
    record = read_manifest(folder)
    return {
        "folder": str(folder),
        "kind": record["kind"],
        "files": len(record["files"]),
        "problems": changed_files(folder),
    }


@click.command("verify")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify_command(folders: tuple[Path, ...], as_json: bool) -> None:
    """Check every file of FOLDERS (scorers, subsets, scored dialogues) against the hashes in their manifests.

    Exits 1 if a file was changed or is missing.
    """
    results = [check_folder(folder) for folder in folders]
    if as_json:
        click.echo(pretty_json(results).decode().rstrip())
    else:
        for result in results:
            for problem in result["problems"]:
                click.echo(f"{result['folder']}: {problem}")
            if not result["problems"]:
                click.echo(
                    f"{result['folder']}: all {result['files']} files are as they were written ({result['kind']})"
                )
    if any(result["problems"] for result in results):
        click.get_current_context().exit(1)
