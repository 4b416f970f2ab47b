"""From folders to a folder: reads answers and scorers, compares, and writes everything that was found."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.evaluation import EvaluateOptions, Evaluation, evaluate
from efficient_empathy.experts.evaluation_page import page
from efficient_empathy.experts.metrics import EAD_VOCABULARY, sacrebleu_signature
from efficient_empathy.experts.runs import Run, ScorerLike
from efficient_empathy.manifest import (
    MANIFEST,
    atomic_open,
    pretty_json,
    read_manifest,
    read_origin,
    versions,
    write_atomic,
    write_manifest,
)
from efficient_empathy.scorer import Scorer

KIND = "evaluation"
RESULT_FILE, PAGE_FILE, ROWS_FILE = "evaluation.json", "evaluation.html", "rows.jsonl"
PAIRWISE = "pairwise"
"""The folder in which a judge's answers about pairs are kept."""
_PACKAGES = ("numpy", "nltk", "sacrebleu", "rouge-score", "onnxruntime")


def evaluate_folders(systems: Sequence[str], scorers: Sequence[str], options: EvaluateOptions, out: Path) -> Evaluation:
    """Compare the systems in some answers folders and write the result to a folder.

    Args:
        systems: ``FOLDER``, ``NAME=FOLDER``, or ``NAME=FOLDER,FOLDER`` for several training seeds of one system.
        scorers: ``FOLDER`` or ``NAME=FOLDER``.
        options: how to compare.
        out: the output folder; an evaluation that is there already is replaced.
    """
    _check_out(out)
    folders = named_folders(systems, "system", several=True)
    judges = {name: Scorer.load(found[0]) for name, found in named_folders(scorers, "scorer", several=False).items()}
    evaluation = evaluate(folders, options, judges)
    write_evaluation(evaluation, judges, out)
    return evaluation


def named_folders(texts: Sequence[str], what: str, several: bool) -> dict[str, list[Path]]:
    """Read ``NAME=FOLDER`` or ``FOLDER``, which is then called by its own name.

    Args:
        texts: as they stand on the command line.
        what: is named, for messages: ``system`` or ``scorer``.
        several: whether commas stand between several folders under one name.

    Raises:
        EmpathyError: a name is empty or stands twice.
    """
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        # A folder may have "=" or "," in its own name; what exists is meant as it stands.
        whole = not equals or Path(text).exists()
        folders = [text if whole else value]
        if several and not whole and not Path(value).exists():
            folders = [folder for folder in value.split(",") if folder]
        name = Path(text).resolve().name if whole else name.strip()
        if not name or not folders or not folders[0]:
            raise EmpathyError(f"'{text}' names no {what}; write FOLDER or NAME=FOLDER.")
        if name in found:
            raise EmpathyError(f"two {what}s are called '{name}'; tell them apart with NAME=FOLDER.")
        found[name] = [Path(folder) for folder in folders]
    return found


def write_evaluation(evaluation: Evaluation, scorers: Mapping[str, ScorerLike], out: Path) -> None:
    """Write tables, page, rows and manifest; the manifest last, so that a folder with one is whole."""
    _check_out(out)
    (out / MANIFEST).unlink(missing_ok=True)
    with atomic_open(out / ROWS_FILE) as file:
        for run in evaluation.runs:
            for row in _row_records(run):
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    write_atomic(out / RESULT_FILE, pretty_json(as_dict(evaluation)))
    write_atomic(out / PAGE_FILE, page(evaluation).encode())
    write_manifest(out, KIND, _provenance(evaluation, scorers), [ROWS_FILE, RESULT_FILE, PAGE_FILE])


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON has it: figures by system, comparisons, and what to be wary of."""
    return {
        "rows": evaluation.rows,
        "conversations": evaluation.conversations,
        "baseline": evaluation.baseline,
        "options": asdict(evaluation.options),
        "families": evaluation.families,
        "figures": {
            system: {name: {**asdict(one.figure), "rows": one.rows, "seeds": one.seeds} for name, one in found.items()}
            for system, found in evaluation.figures.items()
        },
        "comparisons": [asdict(comparison) for comparison in evaluation.comparisons],
        "warnings": evaluation.warnings,
    }


def _row_records(run: Run) -> Iterator[dict[str, Any]]:
    columns = {measure.record: measure.statistics for measure in run.measures.values()}
    for row, answer in enumerate(run.answers):
        scores = {name: _plain(values[row]) for name, values in columns.items()}
        yield {
            "system": run.system,
            "seed": run.seed,
            "id": answer.id,
            "dialogue_id": answer.dialogue_id,
            **scores,
        }


def _plain(values: np.ndarray) -> float | list[float] | None:
    if not np.isfinite(values).all():
        return None
    return float(values[0]) if len(values) == 1 else values.tolist()


def _provenance(evaluation: Evaluation, scorers: Mapping[str, ScorerLike]) -> dict[str, Any]:
    return {
        "systems": {
            name: [
                {
                    "answers": folder.digest,
                    "model": folder.manifest.get("model"),
                    "renderer": folder.manifest.get("renderer"),
                    "options": folder.manifest.get("options"),
                }
                for folder in found
            ]
            for name, found in evaluation.folders.items()
        },
        "scorers": {
            name: {
                "digest": scorer.digest,
                **_origin(scorer),
                "precision": scorer.precision,
                "scales": scorer.scales,
            }
            for name, scorer in scorers.items()
        },
        "options": asdict(evaluation.options),
        "signatures": {
            "sacrebleu": sacrebleu_signature(),
            "bleu_nltk_m1": "corpus_bleu, uniform weights, method1, epsilon 1e-12, NLTKWordTokenizer on lower-cased sentences",
            "rouge_f1": "rouge-score, mean F1, articles and punctuation dropped, no stemming",
            "ead": f"V {EAD_VOCABULARY}",
        },
        "versions": versions(*_PACKAGES),
    }


def _origin(scorer: ScorerLike) -> dict[str, str]:
    folder = getattr(scorer, "folder", None)
    origin = read_origin(folder) if folder is not None else None
    return {"origin": origin} if origin else {}


def _check_out(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    known = {RESULT_FILE, PAGE_FILE, ROWS_FILE, MANIFEST}
    if not out.is_dir():
        raise EmpathyError(f"'{out}' is a file; choose another output folder with -o.")
    ours = read_manifest(out)["kind"] == KIND if (out / MANIFEST).exists() else False
    # A killed run leaves unfinished files, and beside them the answers that were paid for.
    found = {path.name for path in out.iterdir() if not (path.name.startswith(".") and path.name.endswith(".tmp"))}
    if not ours and found - known - {PAIRWISE}:
        raise EmpathyError(f"'{out}' holds something else than an evaluation; choose another output folder with -o.")
