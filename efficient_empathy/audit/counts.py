"""Do the counts in a manifest add up, and do the files hold what it says?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from efficient_empathy.audit.files import Folder
from efficient_empathy.audit.policies import policy_from
from efficient_empathy.audit.rows import count_rows, read_rows
from efficient_empathy.audit.store import store_problems
from efficient_empathy.distill.labels import beside
from efficient_empathy.errors import EmpathyError

_CHUNK = 20_000


def check_counts(folder: Folder, deep: bool) -> list[str]:
    """What does not add up: one sentence each; empty when all does.

    Args:
        folder: whose files are as they were written.
        deep: also read every row: its subset by the policy and its scores, the means.
    """
    check = {
        "subsets": _rated,
        "scored": _rated,
        "answers": _answers,
        "labels": _labels,
        "scorer": _scorer,
        "evaluation": _evaluation,
        "pairwise": _pairwise,
    }.get(folder.kind)
    try:
        problems = check(folder) if check else []
        return problems + (_rows_and_policy(folder) if deep and check is _rated else [])
    except (EmpathyError, OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        # Whatever a folder that was written wrongly makes of the counts is a finding, not the end of the check.
        return [f"its counts cannot be checked ({type(error).__name__}: {error})"]


def _differs(what: str, found: int, says: str, expected: int) -> list[str]:
    return [] if found == expected else [f"{what}: {found:,}, but {says} {expected:,}"]


def _rated(folder: Folder) -> list[str]:
    manifest = folder.manifest
    counts, subsets = manifest["counts"], manifest["subsets"]
    total = sum(subset["examples"] for subset in subsets.values())
    problems = _differs("examples of all subsets", total, "the manifest counts", counts["examples"])
    reasons = sum(counts["rejected_by_reason"].values())
    problems += _differs("rejected rows by reason", reasons, "the manifest counts", counts["rejected"])
    rows: Counter[str] = Counter()
    for name in manifest["files"]:
        rows[name.split("/")[0]] += count_rows(folder.root / name)
    for name, subset in subsets.items():
        problems += _differs(f"rows in {name}/", rows.pop(name, 0), "the manifest says", subset["examples"])
    problems += _differs("rows in rejected/", rows.pop("rejected", 0), "the manifest says", counts["rejected"])
    return problems + [f"'{name}/' holds rows of no subset" for name in rows]


def _rows_and_policy(folder: Folder) -> list[str]:
    """Every row again: the subset that the policy gives it, and the means."""
    manifest = folder.manifest
    names: list[str] = manifest["scorer"]["dimensions"]
    policy = policy_from(manifest["policy"]) if manifest.get("policy") else None
    sums = {name: np.zeros(len(names)) for name in manifest["subsets"]}
    problems = []
    for file in manifest["files"]:
        subset = file.split("/")[0]
        if subset not in sums:
            continue
        waiting: list[Sequence[float]] = []
        wrong = 0
        for _, row in read_rows(folder.root / file):
            waiting.append([row[f"ee_{name}"] for name in names])
            wrong += policy is not None and row.get("ee_subset") != subset
            if len(waiting) == _CHUNK:
                wrong += _misplaced(waiting, policy, names, subset)
                sums[subset] += np.asarray(waiting, np.float64).sum(axis=0)
                waiting = []
        if waiting:
            wrong += _misplaced(waiting, policy, names, subset)
            sums[subset] += np.asarray(waiting, np.float64).sum(axis=0)
        if wrong:
            problems.append(f"'{file}': {wrong} rows that the policy does not put there")
    return problems + _mean_problems(manifest, sums, names)


def _misplaced(scores: list[Sequence[float]], policy: Any, names: list[str], subset: str) -> int:
    if policy is None:
        return 0
    decision = policy.decide(np.asarray(scores, np.float64), names)
    return int((decision != policy.subsets.index(subset)).sum())


def _mean_problems(manifest: Mapping[str, Any], sums: Mapping[str, np.ndarray], names: list[str]) -> list[str]:
    problems = []
    for subset, facts in manifest["subsets"].items():
        for column, name in enumerate(names):
            if not facts["examples"]:
                continue
            mean = float(sums[subset][column]) / facts["examples"]
            # The manifest has 4 decimals of sums taken unit by unit.
            if abs(mean - facts["mean"][name]) > 1e-4:
                problems.append(f"mean {name} in {subset}/ is {mean:.4f}, but the manifest says {facts['mean'][name]}")
    return problems


def _answers(folder: Folder) -> list[str]:
    counts = folder.manifest["counts"]
    lines = count_rows(folder.root / "answers.jsonl")
    problems = _differs("rows in answers.jsonl", lines, "the manifest counts", counts["contexts"])
    parts = counts["answered"] + sum(counts["refused"].values())
    problems += _differs("answered and refused contexts", parts, "the manifest counts", counts["contexts"])
    ends = counts["ended"] + counts["length"]
    return problems + _differs("ended and cut answers", ends, "the manifest counts", counts["answered"])


def _labels(folder: Folder) -> list[str]:
    manifest = folder.manifest
    problems = _differs("labels in the file", count_rows(folder.path), "the manifest counts", manifest["scored"])
    parts = manifest["scored"] + sum(manifest["unscored"].values()) + manifest["not_asked"]
    problems += _differs("scored, unscored and not asked", parts, "the manifest counts", manifest["examples"])
    store = beside(folder.path, ".sqlite")
    names = list(manifest["rubric"]["dimensions"])
    return problems + (store_problems(folder.path, store, names) if store.is_file() else [])


def _scorer(folder: Folder) -> list[str]:
    labels = folder.manifest.get("labels")
    if not labels:
        return []
    parts = labels["trained_on"] + labels["held_out"]
    return _differs("labels trained on and held out", parts, "the manifest counts", labels["examples"])


def _evaluation(folder: Folder) -> list[str]:
    result = orjson.loads((folder.root / "evaluation.json").read_bytes())
    found = Counter((row["system"], row["seed"]) for _, row in read_rows(folder.root / "rows.jsonl"))
    problems = []
    for (system, seed), count in found.items():
        problems += _differs(f"rows of {system} {seed}", count, "evaluation.json says", result["rows"])
    return problems


def _pairwise(folder: Folder) -> list[str]:
    results = orjson.loads((folder.root / "results.json").read_bytes())
    problems = []
    for result in results:
        parts = sum(result[name] for name in ("wins", "ties", "losses", "not_asked")) + sum(result["unscored"].values())
        problems += _differs(f"outcomes of {result['first']}", parts, "results.json says", result["pairs"])
    lines = count_rows(folder.root / "pairs.jsonl")
    return problems + _differs("rows in pairs.jsonl", lines, "results.json says", sum(r["pairs"] for r in results))
