"""The examples that an expert learns from: a subset, or a control of the same cost."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_empathy.dialogues import stream_examples
from efficient_empathy.dialogues.paths import base_name, shown_path
from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.conversations import conversation_name
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.options import Control
from efficient_empathy.manifest import (
    MANIFEST,
    canonical_json,
    changed_files,
    check_unchanged,
    manifest_digest,
    read_manifest,
    sha256_bytes,
)
from efficient_empathy.selection.policies import DISCARDED


@dataclass(frozen=True)
class Chosen:
    """Examples to train on and to measure on, before they are tokens."""

    train: list[Example]
    held_out: list[Example]
    """From conversations that no subset and no control trains on."""
    own_train: int
    """Training examples of the subset itself: what the number of steps follows from, for a control as well."""
    read: dict[str, int]
    """Examples read, by the name of the folder or file; with its parent's where two have one name."""
    rejected: dict[str, int]
    """Rows that could not be read, by reason."""
    selection: dict[str, Any]
    """Scorer and policy of the filter run, as its manifest has them; empty for data that no run chose."""

    @property
    def digest(self) -> str:
        """SHA-256 over the texts in their order: what a resumed run must find again."""
        found = [[e.digest for e in part] for part in (self.train, self.held_out)]
        return sha256_bytes(canonical_json([*found, self.own_train]))


def choose(data: Sequence[str], control: Control, holdout: float, seed: int) -> Chosen:
    """Read the data of one training.

    Args:
        data: subset folders as ``ee-cli filter`` writes them, or dialogues of any kind.
        control: see ``ExpertOptions``; any but ``none`` needs subset folders of one run.
        holdout: share of the conversations that is held out, by a hash of the conversation's name alone.
        seed: draws the random control.

    Raises:
        EmpathyError: nothing to train on, or a control without the folders that it draws from.
    """
    rejected: Counter[str] = Counter()
    selection = _selection(data)
    own = _read(data, rejected)
    read = _counts(own)
    mine = [example for examples in own.values() for example in examples]
    kept, held_out = _split(mine, holdout)
    if not kept:
        raise EmpathyError(
            f"{', '.join(map(shown_path, data))} holds {len(mine)} examples, and none is left to train on beside those held "
            "out. Give more."
        )
    train = kept
    if control != "none":
        siblings = _read([str(folder) for folder in _siblings(data, control)], rejected)
        read = _counts(siblings)
        everything, held_out = _split([e for examples in siblings.values() for e in examples], holdout)
        train = _draw(everything, len(kept), seed) if control == "random" else everything
    return Chosen(train, held_out, len(kept), read, dict(rejected), selection)


def some(examples: Iterable[Example], count: int) -> list[Example]:
    """Some examples, the same ones for any seed: those that come first by the hash of their id."""
    return sorted(examples, key=lambda example: sha256_bytes(example.id.encode()))[:count]


def held_out_conversation(name: str, share: float) -> bool:
    """Whether a conversation is never trained on: a hash of its name, so that all subsets agree."""
    return int.from_bytes(hashlib.sha256(f"held out:{name}".encode()).digest()[:8]) < share * 2**64


def _read(data: Iterable[str], rejected: Counter[str]) -> dict[str, list[Example]]:
    return {name: list(stream_examples([name], "every-turn", rejected)) for name in data}


def _counts(read: Mapping[str, Sequence[Example]]) -> dict[str, int]:
    """How many examples each folder or file gave; those that share both names are counted together."""
    twice = Counter(map(data_name, read))
    found: Counter[str] = Counter()
    for name, examples in read.items():
        short = data_name(name)
        found["/".join(Path(shown_path(name)).parts[-2:]) if twice[short] > 1 else short] += len(examples)
    return dict(found)


def data_name(name: str) -> str:
    """What a folder or file of data is called in records: its name alone; of a URL without what may be secret."""
    return base_name(name.rstrip("/")) or name


def _split(examples: Iterable[Example], share: float) -> tuple[list[Example], list[Example]]:
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        sides[held_out_conversation(conversation_name(example), share)].append(example)
    return sides


def _draw(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Some examples at random; the same ones in whatever order they come."""
    lots = sorted((hashlib.sha256(f"{seed}:{e.id}:{e.digest}".encode()).digest(), i) for i, e in enumerate(examples))
    return [examples[index] for index in sorted(index for _, index in lots[:count])]


def _selection(data: Sequence[str]) -> dict[str, Any]:
    """What chose the data: a judge of the outcome that is the same scorer would judge its own choice."""
    found: dict[str, Any] = {}
    runs: dict[str, str] = {}
    for name in data:
        parent = Path(name).resolve().parent
        if (Path(name) / MANIFEST).is_file():
            check_unchanged(Path(name), "Copy it again.")
        if (parent / MANIFEST).is_file():
            manifest = _checked(parent, Path(name).resolve().name)
            runs[str(manifest_digest(parent))] = parent.name
            found |= {key: manifest[key] for key in ("scorer", "policy") if manifest.get(key)}
    return {**found, "runs": [{"folder": name, "digest": digest} for digest, name in runs.items()]} if runs else found


def _checked(run: Path, subset: str) -> dict[str, Any]:
    """The manifest of a filter run, after a look at the files of one of its subsets.

    Raises:
        EmpathyError: a file has changed or is missing, or one is there that the run did not write.
    """
    manifest = read_manifest(run)
    problems = changed_files(run, f"{subset}/")
    if (run / subset).is_dir():
        if subset not in (names := manifest.get("subsets", {subset: {}})):
            raise EmpathyError(f"'{run / subset}' is none of the subsets of '{run.name}': {', '.join(names)}.")
        vouched = manifest["files"]
        extra = sorted(path.name for path in (run / subset).glob("[!.]*") if f"{subset}/{path.name}" not in vouched)
        problems += [f"'{subset}/{name}' is not in its manifest" for name in extra]
    if problems:
        raise EmpathyError(
            f"'{run}' is not as it was written: {'; '.join(problems)}. Filter again, or copy it again; for data of your own, "
            "use a folder without a manifest."
        )
    return manifest


def _siblings(data: Sequence[str], control: Control) -> list[Path]:
    """The folders that a control takes its examples from."""
    parents = {Path(name).resolve().parent for name in data}
    parent = min(parents)
    if len(parents) != 1 or not (parent / MANIFEST).is_file():
        raise EmpathyError(
            f"the control '{control}' draws from all subsets of one filter run: --data must be folders of one such run, "
            f"e.g. subsets/sensibility, with its {MANIFEST} one level up."
        )
    names = list(read_manifest(parent, "subsets")["subsets"])
    # A subset that came out empty is a folder without files.
    folders = [parent / name for name in names if (parent / name).is_dir() and any((parent / name).iterdir())]
    for name in data:
        if Path(name).resolve() not in folders:
            raise EmpathyError(f"'{name}' is none of the subsets of '{parent.name}': {', '.join(names)}.")
    for folder in folders:
        _checked(parent, folder.name)
    return [folder for folder in folders if control != "union" or folder.name != DISCARDED]
