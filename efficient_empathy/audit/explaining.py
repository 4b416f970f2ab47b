"""``explain``: why a row of a filter run is where it is."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from efficient_empathy.audit.chain import Chain, Link
from efficient_empathy.audit.files import Folder, open_folder
from efficient_empathy.audit.finding import Found, find_example
from efficient_empathy.audit.places import Places
from efficient_empathy.audit.policies import policy_from
from efficient_empathy.audit.reasons import Move, at_thresholds, decide, nearest_moves, threshold_words, why
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import sha256_file


@dataclass(frozen=True)
class RatedBy:
    """The scorer of a run, and how good it was measured to be."""

    folder: str | None
    digest: str
    tier: str | None
    precision: str | None
    place: str | None
    """Where it is now; None where it was not found, and then nothing is known of its quality."""
    held_out: int | None = None
    """Examples on which it was measured."""
    quality: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Its figures by name (``mae/sensibility``, ``decision/accuracy``), each with ``value``, ``low`` and ``high``."""
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """Why one row is where it is."""

    id: str
    file: str
    """Of the folder, in which the row stands."""
    line: int
    subset: str | None
    """None where nothing was chosen: a run of ``score``, or a rejected row."""
    scores: Mapping[str, float]
    tier: str | None
    """Which tier of the scorer decided, where the row says."""
    why: str
    """The policy in words with the numbers put in; of a rejected row its reason."""
    rejected: Mapping[str, Any] | None = None
    """File, line, reason and detail of a row that could not be read."""
    moves: tuple[Move, ...] = ()
    """For each dimension the nearest score that would change the subset, the nearest first."""
    at_thresholds: tuple[Mapping[str, Any], ...] = ()
    """The subset at other thresholds."""


def explain(folder: Path, name: str, search: tuple[Path, ...] = ()) -> tuple[list[Explanation], RatedBy]:
    """Say why an example is in the subset where it is.

    Args:
        folder: as ``filter`` or ``score`` wrote it.
        name: an example's id; a conversation's, for all its examples; of a rejected row its id or ``file:line``.
        search: further folders in which the scorer may lie.

    Raises:
        EmpathyError: the folder is of another kind or was changed, or nothing has this id.
    """
    opened = open_folder(folder)
    if opened.kind not in ("subsets", "scored"):
        raise EmpathyError(f"'{folder}' is a folder of kind '{opened.kind}'; explain reads what filter or score wrote.")
    found = find_example(opened, name)
    for file in {hit.file for hit in found}:
        if sha256_file(opened.root / file) != opened.manifest["files"][file]:
            raise EmpathyError(
                f"'{opened.root / file}' has changed since it was written. Filter again, or copy it again."
            )
    scorer = _scorer(opened, search)
    return [_explanation(opened, hit, scorer) for hit in found], scorer


def _explanation(folder: Folder, found: Found, scorer: RatedBy) -> Explanation:
    row = found.row
    if found.rejected:
        facts = {key: row[key] for key in ("file", "line", "reason", "detail")}
        place = f"{row['file']}:{row['line']}"
        return Explanation(place, found.file, found.line, None, {}, None, f"{row['reason']}: {row['detail']}", facts)
    names = folder.manifest["scorer"]["dimensions"]
    scores = {name: float(row[f"ee_{name}"]) for name in names}
    tier = row.get("ee_tier")
    rest = (found.file, found.line, row.get("ee_subset"), scores, None if tier is None else str(tier))
    if not folder.manifest.get("policy"):
        return Explanation(str(row["ee_id"]), *rest, "it was scored only: no policy chose a subset")
    policy = policy_from(folder.manifest["policy"])
    reason = why(policy, scores)
    if (decided := decide(policy, scores)) != row.get("ee_subset"):
        reason += f"; but that gives {decided}: the row was changed, or another policy put it there"
    scales = {name: scorer.scales.get(name) or (min(0.0, scores[name]), max(10.0, scores[name])) for name in names}
    return Explanation(
        str(row["ee_id"]),
        *rest,
        reason,
        moves=tuple(nearest_moves(policy, scores, scales)),
        at_thresholds=tuple(at_thresholds(policy, scores, scales)),
    )


def _scorer(folder: Folder, search: tuple[Path, ...]) -> RatedBy:
    record = folder.manifest["scorer"]
    links: tuple[Link, ...] = Chain(Places(folder.path, search)).of(folder)
    link = next(link for link in links if link.what == "scorer")
    known = (record.get("folder"), record["digest"], record.get("tier"), record.get("precision"))
    if link.place is None or link.state != "same":
        return RatedBy(*known, None)
    spec = orjson.loads((Path(link.place) / "scorer.json").read_bytes())
    quality = spec.get("quality") or {}
    systems = quality.get("systems") or {}
    figures: Mapping[str, Mapping[str, float]] = systems.get("scorer") or next(iter(systems.values()), {})
    scales = {d["name"]: (float(d["low"]), float(d["high"])) for d in spec["dimensions"]}
    return RatedBy(*known, link.place, quality.get("rows"), figures, scales)


def as_dict(explanations: list[Explanation], scorer: RatedBy) -> dict[str, Any]:
    """Everything, for machines."""
    return {"rows": [asdict(found) for found in explanations], "scorer": asdict(scorer)}


def describe(explanations: list[Explanation], scorer: RatedBy) -> str:
    """Everything, for people."""
    blocks = ["\n".join(_lines(found, scorer)) for found in explanations]
    if any(found.rejected is None for found in explanations):
        blocks.append("\n".join(_scorer_lines(scorer)))
    return "\n\n".join(blocks)


def _lines(found: Explanation, scorer: RatedBy) -> list[str]:
    where = f"{found.file}, line {found.line}"
    if found.rejected is not None:
        return [f"{found.id} was rejected ({where})", f"  why                 {found.why}"]
    lines = [f"{found.id} is in {found.subset} ({where})" if found.subset else f"{found.id} ({where})"]
    scores = ", ".join(f"{name} {value:g}" for name, value in found.scores.items())
    lines.append(f"  scores              {scores}{f', decided by the tier {found.tier}' if found.tier else ''}")
    lines.append(f"  why                 {found.why}")
    for index, move in enumerate(found.moves):
        error = scorer.quality.get(f"mae/{move.dimension}", {}).get("value")
        beside = "" if error is None else f"; the scorer errs by {error:.2f} on average"
        head = "  nearest threshold  " if index == 0 else " " * 21
        lines.append(
            f"{head} {move.dimension} {move.score:g} is {move.distance:g} from {move.boundary:g}; beyond that it would "
            f"be in {move.subset}{beside}"
        )
    if found.at_thresholds:
        lines.append(f"  at other thresholds {threshold_words(found.at_thresholds)}")
    return lines


def _scorer_lines(scorer: RatedBy) -> list[str]:
    kind = ", ".join(part for part in (scorer.tier, scorer.precision) if part)
    lines = [f"scorer {scorer.folder or ''} {scorer.digest[:12]}…{f' ({kind})' if kind else ''}".replace("  ", " ")]
    if scorer.place is None:
        return [
            *lines,
            "  not found near here, so its measured quality is not known; name its folder's place with --search",
        ]
    lines[0] += f": {scorer.place}"
    if not scorer.quality:
        return [*lines, "  its quality was not measured"]
    words = {"spearman": "rank correlation", "mae": "mean absolute error", "accuracy": "same decision as the judge"}
    for name, figure in scorer.quality.items():
        first, _, second = name.partition("/")
        title = words.get(first) or words.get(second)
        if title:
            of = f" {second}" if first in words else ""
            lines.append(f"  {title}{of}: {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]")
    return [*lines, f"  on {scorer.held_out} held-out examples, 95 % intervals in brackets"]
