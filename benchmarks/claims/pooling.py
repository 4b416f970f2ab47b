"""What all seeds say together: each figure on the same resamples of conversations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from judging import MECHANISMS

from claims.data import DIMENSIONS, read_jsonl
from claims.over_seeds import Mean, mean_over_seeds, noise_of_differences, noise_of_one
from claims.plan import LABELLED, Study, T
from claims.stages import ALL, BASE, COLD, MAIN, MIXTURE, RANDOM, Seed
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.answer_folders import Answer, aligned, read_answers
from efficient_empathy.experts.measures import Measure, mean_measure, ratio, sum_measure
from efficient_empathy.experts.metrics import Texts, text_measures
from efficient_empathy.experts.runs import REFERENCE
from efficient_empathy.experts.statistics import draw, holm
from efficient_empathy.manifest import sha256_file
from efficient_empathy.selection import PaperPolicy


@dataclass(frozen=True)
class Metric:
    """A figure of a system's answers."""

    name: str
    label: str
    kind: str
    """``independent``: nothing that chose the data measures it; ``self-fulfilling``: the scorer that chose it does; ``form``."""
    better: int
    """1: more is better; -1: less is; 0: neither."""
    margin: float | None = None
    """A change of less than this is next to nothing; only figures with a margin decide. Set before any run at full size."""


METRICS = (
    Metric("nats", "nats a token of what people answered", "independent", -1, 0.05),
    Metric("epitome/all", "EPITOME judge, all three mechanisms, 0-6", "independent", 1, 0.15),
    Metric("rougeL_f1", "ROUGE-L with what people answered", "independent", 1, 1.0),
    Metric("ead2", "EAD-2, which is Dist-2 adjusted for length", "independent", 1, 2.0),
    Metric("nats/sensibility", "nats a token, answers the paper's judge puts in sensibility", "independent", -1),
    Metric("nats/other", "nats a token, all other answers of people", "independent", -1),
    *(Metric(f"epitome/{m}", f"EPITOME judge, {m.replace('_', ' ')}, 0-2", "independent", 1) for m in MECHANISMS),
    Metric("bleu1_nltk_m1", "BLEU-1", "independent", 1),
    Metric("bleu4_nltk_m1", "BLEU-4", "independent", 1),
    Metric("rouge1_f1", "ROUGE-1", "independent", 1),
    Metric("rouge2_f1", "ROUGE-2", "independent", 1),
    Metric("f1_words", "F1 of words", "independent", 1),
    Metric("dist1", "Dist-1", "independent", 1),
    Metric("dist2", "Dist-2", "independent", 1),
    *(
        Metric(f"paper/{name}", f"the scorer that chose the data, {name}, 0-10", "self-fulfilling", 0)
        for name in DIMENSIONS
    ),
    Metric("words", "words an answer", "form", 0),
    Metric("empty_rate", "empty answers, which no judge rates, %", "form", -1),
    Metric("question_rate", "answers with a question, %", "form", 0),
)
DECIDING = tuple(metric for metric in METRICS if metric.margin is not None)

Values = dict[str, dict[str, np.ndarray]]
"""By system and figure: the figure, then its value on each resample of the conversations, (1 + R,)."""


def comparisons_of(thresholds: Sequence[float]) -> list[tuple[str, str, str]]:
    """Claim, system, and what it is compared with."""
    others = [(f"sensibility-T{t:g}", MAIN) for t in thresholds if t != T]
    pairs = {"a": [(MAIN, ALL), (MAIN, RANDOM)], "b": others, "c": [(MIXTURE, MAIN), (MIXTURE, COLD)]}
    return [(claim, *pair) for claim, found in pairs.items() for pair in found]


def seed_values(seed: Seed) -> Values:
    """The figures of a seed on the resamples that all seeds share; kept in a file until the seed is evaluated anew."""
    path, rows = seed.folder / "values.npz", seed.folder / "evaluation" / "rows.jsonl"
    if not path.is_file() or path.stat().st_mtime < rows.stat().st_mtime:
        write_values(path, _computed(seed))
    return read_values(path)


def write_values(path: Path, values: Values) -> None:
    """Write figures as float32: a seed's file is what later runs, whose folders lack the seed, pool it from."""
    flat = {
        f"{system}|{name}": array.astype(np.float32) for system, own in values.items() for name, array in own.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.stem}.new.npz")
    np.savez_compressed(new, **flat)
    new.replace(path)


def read_values(path: Path) -> Values:
    """What ``write_values`` wrote."""
    values: Values = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            system, name = key.split("|")
            values.setdefault(system, {})[name] = file[key].astype(float)
    return values


def _computed(seed: Seed) -> Values:
    names = list(seed.systems)
    folders = aligned([read_answers(seed.systems[name]) for name in names])
    answers = {name: folder.answers for name, folder in zip(names, folders, strict=True)}
    rows: dict[str, dict[str, dict]] = {}
    for row in read_jsonl(seed.folder / "evaluation" / "rows.jsonl"):
        rows.setdefault(row["system"], {})[row["id"]] = row
    order = sorted(answers[BASE], key=lambda answer: answer.id)
    draws = draw([answer.dialogue_id for answer in order], seed.plan.resamples, 0)
    warm = judged_sensible(seed.study)
    found: Values = {}
    for name in [*names, REFERENCE]:
        own = sorted(answers[BASE if name == REFERENCE else name], key=lambda answer: answer.id)
        measures = _text(own, name == REFERENCE) + _scored([rows[name][answer.id] for answer in own])
        if name != REFERENCE:
            measures += _likelihood(own, warm)
        known = {metric.name for metric in METRICS}
        found[name] = {m.name: m.values(draws) for m in measures if m.name in known}
    return found


def judged_sensible(study: Study) -> set[str]:
    """Ids of the rows that the paper's own judge puts in the sensibility subset."""
    rows = study.rows(LABELLED)
    decision = PaperPolicy(T).decide(np.array([[row[name] for name in DIMENSIONS] for row in rows], float), DIMENSIONS)
    return {row["id"] for row, place in zip(rows, decision, strict=True) if place == 0}


def _text(answers: Sequence[Answer], people: bool) -> list[Measure]:
    references = [answer.reference for answer in answers]
    texts = references if people else [answer.text for answer in answers]
    compared = [None] * len(answers) if people else references
    return text_measures(Texts([answer.context for answer in answers], compared, texts))


def _scored(rows: Sequence[Mapping]) -> list[Measure]:
    def column(name: str) -> np.ndarray:
        return np.array([np.nan if row[name] is None else row[name] for row in rows], float)

    names = [*(f"paper/{name}" for name in DIMENSIONS), *(f"epitome/{name}" for name in MECHANISMS)]
    columns = {name: column(name) for name in names}
    columns["epitome/all"] = sum(columns[f"epitome/{name}"] for name in MECHANISMS)
    return [measure for name, values in columns.items() for measure in mean_measure(name, "", values)]


def _likelihood(answers: Sequence[Answer], warm: set[str]) -> list[Measure]:
    nats = np.array([(np.nan, np.nan) if a.nll is None else (a.nll, a.nll_tokens) for a in answers], float)
    sensible = np.array([answer.id in warm for answer in answers])
    found = []
    for name, counts in (("nats", None), ("nats/sensibility", sensible), ("nats/other", ~sensible)):
        statistics = nats if counts is None else np.where(counts[:, None], nats, np.nan)
        found += sum_measure(name, "", statistics, ratio)
    return found


def pooled(seeds: Sequence[Values], thresholds: Sequence[float], conversations: int) -> dict:
    """Figures, and differences for each claim, of all seeds together; Holm's correction over what decides.

    Args:
        seeds: each seed's figures on the same resamples.
        thresholds: of the plan.
        conversations: how many were resampled.

    Raises:
        EmpathyError: a seed lacks a figure that decides.
    """
    figures: dict[str, dict[str, dict]] = {}
    for system in seeds[0]:
        for metric in METRICS:
            if all(metric.name in seed[system] for seed in seeds):
                arrays = [seed[system][metric.name] for seed in seeds]
                noise = noise_of_one(np.array([array[0] for array in arrays]))
                figures.setdefault(system, {})[metric.name] = _shown(
                    arrays, mean_over_seeds(arrays, conversations, noise)
                )
    pairs = comparisons_of(thresholds)
    trained = sorted({name for _, *both in pairs for name in both})
    found = []
    for metric in METRICS:
        if any(metric.name not in seed[name] for seed in seeds for name in trained):
            if metric in DECIDING:
                raise EmpathyError(
                    f"a seed has no '{metric.name}' of some system, which decides a claim: evaluate it anew."
                )
            continue
        noise = noise_of_differences(np.array([[seed[name][metric.name][0] for name in trained] for seed in seeds]))
        for claim, system, baseline in pairs:
            arrays = [seed[system][metric.name] - seed[baseline][metric.name] for seed in seeds]
            mean = mean_over_seeds(arrays, conversations, noise)
            named = {"claim": claim, "system": system, "baseline": baseline, "metric": metric.name}
            found.append({**named, **_shown(arrays, mean), "p": mean.p if metric in DECIDING else None})
    found.sort(key=lambda one: pairs.index((one["claim"], one["system"], one["baseline"])))
    tested = [one for one in found if one["p"] is not None]
    for one, corrected in zip(tested, holm([one["p"] for one in tested]), strict=True):
        one["holm"] = corrected
    return {"figures": figures, "comparisons": found, "tests": len(tested)}


def _shown(arrays: Sequence[np.ndarray], mean: Mean) -> dict:
    return {"value": mean.value, "low": mean.low, "high": mean.high, "seeds": [float(array[0]) for array in arrays]}


def facts(seed: Seed) -> dict:
    """What a seed has come to: costs, quality of its scorer, sizes and overlaps of its subsets, its trainings."""
    found: dict = {"seed": seed.number, "costs": {k: v for k, v in seed.ledger.read().items() if "seconds" in v}}
    if seed.contexts_file.is_file():
        found["contexts_sha256"] = sha256_file(seed.contexts_file)
    if (seed.folder / "scorer" / "scorer.json").is_file():
        spec = _json(seed.folder / "scorer" / "scorer.json")
        quality = spec["quality"]["systems"]["scorer"]
        shown = ("spearman/sensibility", "spearman/rationality", "decision/macro_f1")
        found["scorer"] = {name: quality[name] for name in shown if name in quality}
        found["labels"] = len(read_jsonl(seed.folder / "labels.jsonl"))
    found["thresholds"] = overlaps(seed)
    experts = {path.parent.name: _json(path) for path in sorted((seed.folder / "experts").glob("*/expert.json"))}
    found["experts"] = {
        name: {
            **{key: one["data"][key] for key in ("examples", "tokens")},
            **{key: one["result"][key] for key in ("steps", "base_val_nll", "val_nll")},
        }
        for name, one in experts.items()
    }
    path = seed.folder / "experts" / MIXTURE / "moe.json"
    if path.is_file():
        mixture = _json(path)
        kept = {key: value for key, value in mixture["routing"].items() if not isinstance(value, list | dict)}
        found["mixture"] = {**kept, "steps": mixture["result"]["steps"]}
    found["evaluated"] = all(job.done for job in seed.jobs("evaluation"))
    return found


def overlaps(seed: Seed) -> dict[str, dict]:
    """The sensibility subset at each threshold: its size, its share of the pool, and what it has in common with T = 5."""
    ids: dict[float, set[str]] = {}
    total = 0
    for threshold in seed.plan.thresholds:
        folder = seed.subset(threshold, "sensibility")
        if (folder.parent / "manifest.json").is_file():
            ids[threshold] = {row["ee_id"] for path in folder.glob("*.jsonl") for row in read_jsonl(path)}
            total = sum(one["examples"] for one in _json(folder.parent / "manifest.json")["subsets"].values())
    if T not in ids:
        return {}
    return {
        f"{threshold:g}": {
            "examples": len(own),
            "share": len(own) / total,
            "also_at_5": len(own & ids[T]),
            "jaccard": len(own & ids[T]) / max(1, len(own | ids[T])),
        }
        for threshold, own in ids.items()
    } | {"pool": {"examples": total}}


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
