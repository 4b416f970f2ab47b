"""The rows of a run: which contexts are answered, and the subsets of one rating at several thresholds."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from common import untouched, write_jsonl

from efficient_empathy.manifest import MANIFEST, read_manifest, sha256_bytes, sha256_file, write_manifest
from efficient_empathy.selection import PaperPolicy

DIMENSIONS = ("sensibility", "rationality")
PART = "part-00000.jsonl"


def draw_contexts(rows: list[dict], count: int) -> list[dict]:
    """Contexts of conversations that no recipe was chosen on: one of each before a second of any, in an order by hash."""
    ranked = sorted((r for r in rows if untouched(r["conv_id"])), key=lambda row: sha256_bytes(row["id"].encode()))
    seen: dict[str, int] = {}
    order = []
    for row in ranked:
        seen[row["conv_id"]] = seen.get(row["conv_id"], 0) + 1
        order.append((seen[row["conv_id"]], len(order)))
    return [ranked[index] for _, index in sorted(order)[:count]]


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def subset_counts(folder: Path) -> dict[str, int]:
    """Examples by subset; empty while the folder is not whole."""
    if not (folder / MANIFEST).is_file():
        return {}
    return {name: facts["examples"] for name, facts in read_manifest(folder)["subsets"].items()}


def cut(source: Path, out: Path, threshold: float) -> None:
    """The subsets of a filter run at another threshold, from the scores that it wrote: nothing is rated again."""
    if (out / MANIFEST).is_file():
        return
    new, manifest = out.with_name(f".{out.name}.new"), read_manifest(source, "subsets")
    shutil.rmtree(new, ignore_errors=True)
    paths = [source / name for name in manifest["files"] if not name.startswith("rejected/")]
    rows = sorted((row for path in paths for row in read_jsonl(path)), key=lambda row: row["ee_id"])
    policy = PaperPolicy(threshold)
    decision = policy.decide(np.array([[row[f"ee_{name}"] for name in DIMENSIONS] for row in rows]), DIMENSIONS)
    counts = {}
    for index, name in enumerate(policy.subsets):
        own = [{**row, "ee_subset": name} for row, place in zip(rows, decision, strict=True) if place == index]
        (new / name).mkdir(parents=True)
        if own:
            write_jsonl(new / name / PART, own)
        counts[name] = {"examples": len(own)}
    origin = {"sha256": sha256_file(source / MANIFEST)}
    body = {"scorer": manifest["scorer"], "policy": policy.describe(), "subsets": counts, "cut_from": origin}
    write_manifest(new, "subsets", body, [f"{name}/{PART}" for name, one in counts.items() if one["examples"]])
    os.replace(new, out)
