"""``ee-cli doctor``: what is here, and what is broken."""

from typing import Any

import click

from efficient_empathy.environment import PACKAGE, environment, problems
from efficient_empathy.manifest import json_text


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
        click.echo(json_text(facts))
    else:
        click.echo(_environment_text(facts))
        click.echo()
        for problem in broken:
            click.echo(f"BROKEN: {problem['what']}.\n  Mend: {problem['mend']}")
        click.echo(f"{len(broken)} broken." if broken else "Nothing is broken.")
    if broken:
        click.get_current_context().exit(1)
