"""What a folder holds: the counts of a filtered folder, or the quality of a scorer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import check_unchanged, read_manifest
from efficient_empathy.scorer.summary import subsets_summary, text_table


def report(folder: Path) -> tuple[str, dict[str, Any]]:
    """Describe a folder that ee-cli wrote.

    Returns:
        A text for people, and the same facts for machines.

    Raises:
        EmpathyError: it has no manifest, or one of a kind there is no report for.
    """
    manifest = read_manifest(folder)
    kind = manifest.get("kind")
    if kind in ("subsets", "scored"):
        return subsets_summary(manifest, folder), {key: value for key, value in manifest.items() if key != "files"}
    if kind == "scorer":
        return report_scorer(folder)
    raise EmpathyError(f"'{folder}' is a folder of kind '{kind}'; report knows subsets, scored and scorer folders.")


def report_scorer(folder: Path) -> tuple[str, dict[str, Any]]:
    """Describe a scorer folder from its ``scorer.json``: dimensions, tiers and measured quality."""
    path = Path(folder) / "scorer.json"
    check_unchanged(folder, "Copy or distil it again.", path.name)
    try:
        spec = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError) as error:
        raise EmpathyError(f"cannot read '{path}' ({error}); copy or distil the scorer again.") from None
    scales = [
        f"{dimension['name']} ({dimension['low']:g} to {dimension['high']:g})" for dimension in spec["dimensions"]
    ]
    lines = [
        f"scorer: {folder}",
        f"dimensions: {', '.join(scales)}",
        f"tiers: {_words(spec.get('tiers', {}))}",
        "",
        "quality:",
    ]
    lines += _quality(spec.get("quality"))
    return "\n".join(lines), {key: spec.get(key) for key in ("dimensions", "tiers", "rubric", "parity", "quality")}


def quality_table(quality: Mapping[str, Any]) -> list[list[str]]:
    """The quality section of ``scorer.json`` as rows of text, the header first.

    One row a figure and one column a system, each figure with its 95 % interval.
    """
    systems = quality["systems"]
    rows = [["figure", *systems]]
    for metric in next(iter(systems.values())):
        cells = [_figure(figures[metric]) for figures in systems.values()]
        rows.append([metric.replace("/", " ").replace("_", "-"), *cells])
    return rows


def _quality(quality: Mapping[str, Any] | None) -> list[str]:
    if not quality:
        return ["  not measured"]
    header, *rows = quality_table(quality)
    return [
        f"  on {quality['rows']} held-out examples of {quality['conversations']} conversations, "
        f"95 % intervals in brackets; decision: {quality['decision']}",
        "",
        *text_table(header, rows).splitlines(),
    ]


def _figure(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(_words(inner) for inner in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
