"""``distill`` on files: labels from a judge or a file, the pool from the dialogues, then the pipeline."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from efficient_empathy.dialogues import ExampleMode, stream_examples
from efficient_empathy.dialogues.paths import base_name
from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.asking import Progress
from efficient_empathy.distill.choosing import choose_examples
from efficient_empathy.distill.labelling import label
from efficient_empathy.distill.labels import label_manifest, load_labelled
from efficient_empathy.distill.options import JudgeOptions
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.distill.settings import COMPARED_EXAMPLES, DistillOptions
from efficient_empathy.errors import EmpathyError, require
from efficient_empathy.manifest import read_manifest_file, sha256_file
from efficient_empathy.scorer.artifact import ScorerSpec
from efficient_empathy.scorer.runfolder import hashed_inputs

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillRequest:
    """What ``ee-cli distill`` was asked for."""

    out: Path
    """The scorer folder to write."""
    dialogues: tuple[str, ...] = ()
    """Files, folders, globs or URLs: what is judged or what the labels are about, and the unlabelled pool."""
    labels: Path | None = None
    """Label file; None where a judge is to be asked."""
    judging: JudgeOptions | None = None
    """The judge to ask; None where there is a label file."""
    rubric: Path | None = None
    """YAML file of the rubric; None for the one that ``judging`` names, else for the paper's two dimensions."""
    examples: ExampleMode = "every-turn"
    """Which listener turns of a dialogue are taken."""
    options: DistillOptions = field(default_factory=DistillOptions)
    """How to train."""

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.judging is None):
            raise EmpathyError("say where the labels come from: --labels FILE or --judge KIND:MODEL, one of the two.")
        if self.judging is not None and not self.dialogues:
            raise EmpathyError("--judge needs dialogues to judge: name them with --dialogues.")
        if self.judging is not None and self.rubric is None:
            object.__setattr__(self, "rubric", self.judging.rubric)
        if self.judging is not None and self.rubric != self.judging.rubric:
            judged_by = f"'{self.judging.rubric}'" if self.judging.rubric else "the paper's two dimensions"
            raise EmpathyError(
                f"rubric is '{self.rubric}', but the judge would be asked by {judged_by}: give judging the same rubric."
            )

    @property
    def label_file(self) -> Path:
        """Where the labels are: the file that was named, or the one that the judge's answers go to."""
        return self.labels or self.out.with_name(self.out.name + ".labels.jsonl")


def distill_from_files(request: DistillRequest, progress: Callable[[Progress], None] | None = None) -> ScorerSpec:
    """Label if need be, then train a scorer and write its folder.

    Raises:
        EmpathyError: as ``label``, ``load_labelled`` and ``pipeline.distill`` do; the output folder exists already, or the
            spending limit left examples over. What is known beforehand to stop the training is said before a judge is asked.
    """
    if request.out.exists():
        raise EmpathyError(f"'{request.out}' is already there. Choose another folder with -o, or remove it first.")
    require("torch", "distill", "training a scorer")
    from efficient_empathy.distill.backbone import open_backbone
    from efficient_empathy.distill.pipeline import LEAST_LABELS, LabelledData, distill

    rubric = Rubric.load(request.rubric)
    provenance: dict[str, Any] = {}
    if request.judging is not None:
        if request.judging.budget < LEAST_LABELS:
            raise EmpathyError(
                f"--budget {request.judging.budget}: at least {LEAST_LABELS} labelled examples are needed to train and measure a "
                "scorer, a few hundred to a thousand are advised."
            )
        options = request.options
        open_backbone(options.backbone, options.max_tokens, options.layers)
        if options.teacher is not None:
            open_backbone(options.teacher, options.max_tokens)
        answers = label(request.dialogues, request.label_file, request.judging, request.examples, progress)
        provenance |= {
            **_named_judge(request.label_file),
            "asked": {name: value for name, value in asdict(answers).items() if not isinstance(value, Path)},
        }
        if answers.not_asked:
            raise EmpathyError(
                f"--max-usd was reached: {answers.not_asked} of {answers.examples} examples were not asked about. Raise it and run "
                f"again to go on, or train on what there is with --labels {request.label_file}."
            )
        _warn("examples without scores", answers.unscored)
    rejected: Counter[str] = Counter()
    dialogues = stream_examples(request.dialogues, request.examples, rejected) if request.dialogues else None
    labelled = load_labelled(request.label_file, dialogues, rubric)
    _warn("labels passed over", labelled.skipped)
    _warn("rows of dialogues that cannot be read", rejected)
    provenance["file"] = {"name": request.label_file.name, "sha256": sha256_file(request.label_file)}
    provenance["inputs"] = _named_inputs(request.dialogues) if request.dialogues else []
    provenance["skipped"] = dict(labelled.skipped)
    provenance["unreadable_rows"] = dict(rejected)
    pool = _pool(request, {example.digest for example in labelled.examples})
    data = LabelledData(labelled.examples, labelled.scores, pool, provenance)
    return distill(data, rubric, request.options, request.out)


def _warn(what: str, counts: Mapping[str, int]) -> None:
    if counts:
        _log.warning("%s: %s", what, ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())))


def _named_judge(labels: Path) -> dict[str, str]:
    """The judge by its name, which holds no path; where it is a file or a folder, its weights by their hash."""
    judge = read_manifest_file(label_manifest(labels))["judge"]
    weights = judge.get("weights")
    by_hash = weights is not None and not judge["name"].endswith(weights)  # of a Hub id there is only the name
    return {"judge": judge["name"], **({"judge_weights": weights} if by_hash else {})}


def _named_inputs(dialogues: tuple[str, ...]) -> list[dict[str, Any]]:
    """The dialogue files by name alone: scorers are passed on, and where the data lay concerns nobody else."""
    return [{**record, "path": base_name(record["path"])} for record in hashed_inputs(dialogues)]


def _pool(request: DistillRequest, labelled: set[str]) -> list[Example]:
    if not request.dialogues:
        return []
    options = request.options
    wanted = max(COMPARED_EXAMPLES, options.fast.rated_examples)
    if options.effort == "high":
        wanted = max(wanted, options.pool.rated_examples * 4 // 3)
    examples = stream_examples(request.dialogues, request.examples, Counter())
    return choose_examples((e for e in examples if e.digest not in labelled), wanted, request.options.seed)
