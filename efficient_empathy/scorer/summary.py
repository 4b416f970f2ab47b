"""What a run came to, as a table for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_NOTES = {
    "ties_at_threshold": "ties at the threshold",
    "low_on_both": "low on both dimensions",
    "matched_by_several": "matched by several expressions (the first one has them)",
}


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side: the first flush left, the others flush right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def subsets_summary(manifest: Mapping[str, Any], folder: Path) -> str:
    """Subset, examples, share and mean scores; then ties, rejected rows, and where all of it is.

    Args:
        manifest: of a folder that ``ee-cli filter`` or ``ee-cli score`` wrote.
        folder: that folder, as the reader should see it.
    """
    dimensions = manifest["scorer"]["dimensions"]
    counts = manifest["counts"]
    rows = [_row(name, subset, dimensions) for name, subset in manifest["subsets"].items()]
    if len(rows) > 1:
        whole = {"examples": counts["examples"], "share": 1.0 if counts["examples"] else 0.0, "mean": manifest["mean"]}
        rows.append(_row("all", whole, dimensions))
    lines = [text_table(["subset", "examples", "share", *(f"mean {name}" for name in dimensions)], rows), ""]
    policy = manifest.get("policy")
    for key, words in _NOTES.items():
        if key in counts:
            at = f" ({policy['threshold']:g})" if key == "ties_at_threshold" and policy else ""
            lines.append(f"{words}{at}: {counts[key]:,}")
    if tiers := manifest.get("tiers"):
        share = tiers.get("fast", 0) / max(1, counts["examples"])
        promise = manifest["scorer"]["cascade"]["max_flips"]
        lines.append(
            f"decided by the fast tier: {tiers.get('fast', 0):,} ({100 * share:.1f} %); on held-out rows at most "
            f"{100 * promise:g} % of all decisions differ from the transformer's"
        )
    lines.append(_rejected_line(counts, folder))
    lines.append(f"written to: {folder}")
    return "\n".join(lines)


def _row(name: str, subset: Mapping[str, Any], dimensions: Sequence[str]) -> list[str]:
    means = [
        "-" if subset["mean"][dimension] is None else f"{subset['mean'][dimension]:.2f}" for dimension in dimensions
    ]
    return [name, f"{subset['examples']:,}", f"{100 * subset['share']:.1f} %", *means]


def _rejected_line(counts: Mapping[str, Any], folder: Path) -> str:
    if not counts["rejected"]:
        return f"rejected rows: 0 of {counts['rows']:,}"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts["rejected_by_reason"].items())
    return f"rejected rows: {counts['rejected']:,} of {counts['rows']:,} ({reasons}), kept in {folder / 'rejected'}"
