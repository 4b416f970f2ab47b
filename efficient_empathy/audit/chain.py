"""The chain back: what a folder was made from, what that was made from, and whether it is still as it was."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from efficient_empathy.audit.files import Folder, open_folder
from efficient_empathy.audit.places import Places
from efficient_empathy.distill.labels import LABELS
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import canonical_json, changed_files, sha256_bytes

SAME = "same"
CHANGED = "changed"
GONE = "moved or gone"
RECORDED = "recorded"
"""Named by its hash, and nothing on this machine to compare it with."""
UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Link:
    """One thing that something was made from."""

    what: str
    """``scorer``, ``labels``, ``input``, …"""
    name: str
    """What the manifest calls it."""
    state: str
    """``same``, ``changed``, ``moved or gone``, ``recorded`` or ``not recorded``."""
    sha256: str | None = None
    """The hash that the manifest has of it; of a folder, of its manifest."""
    place: str | None = None
    """Where it was found."""
    note: str = ""
    """What else there is to say."""
    made_from: tuple["Link", ...] = ()
    """The chain further back."""

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def problems(self) -> Iterator[str]:
        """One sentence for each thing in the chain that is no longer what was used."""
        if self.state == CHANGED:
            yield f"{self.what} '{self.place or self.name}' has changed{f': {self.note}' if self.note else ''}"
        for link in self.made_from:
            yield from link.problems()


class Chain:
    """Follows hashes from folder to folder."""

    def __init__(self, places: Places):
        self._places = places
        self._known: dict[tuple[str, str], Link] = {}

    def of(self, folder: Folder) -> tuple[Link, ...]:
        """What a folder was made from.

        Raises:
            EmpathyError: a description that its manifest vouches for cannot be read.
        """
        follow = {
            "scorer": self._of_scorer,
            LABELS: self._of_labels,
            "subsets": self._of_rated,
            "scored": self._of_rated,
            "expert": self._of_expert,
            "mixture": self._of_mixture,
            "answers": self._of_answers,
            "evaluation": self._of_evaluation,
            "pairwise": self._of_pairwise,
        }.get(folder.kind)
        try:
            return tuple(follow(folder)) if follow else ()
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise EmpathyError(
                f"'{folder.path}' cannot be followed back: its description is incomplete ({type(error).__name__}: {error}). "
                "Write the folder again."
            ) from error

    def folder_link(self, what: str, name: str, digest: str | None, hint: str | None = None) -> Link:
        """A folder that is named by the SHA-256 of its manifest."""
        if not digest:
            return Link(what, name, UNKNOWN)
        key = (what, digest)
        if key not in self._known:
            self._known[key] = self._found(what, name, digest, self._places.folder(digest) or _at(hint, digest))
        return self._known[key]

    def _found(self, what: str, name: str, sha256: str, path: Path | None) -> Link:
        if path is None:
            return Link(what, name, GONE, sha256)
        try:
            folder = open_folder(path)
            problems = changed_files(folder.root) if folder.kind != LABELS else []
            made_from = self.of(folder)
        except EmpathyError as error:
            return Link(what, name, CHANGED, sha256, str(path), str(error))
        return Link(what, name, CHANGED if problems else SAME, sha256, str(path), "; ".join(problems), made_from)

    def _by_file(self, what: str, name: str, sha256: str | None) -> Link:
        """A folder that is named by the SHA-256 of its weights."""
        if not sha256:
            return Link(what, name, UNKNOWN)
        if (what, sha256) not in self._known:
            self._known[what, sha256] = self._found(what, name, sha256, self._places.holding(what, sha256))
        return self._known[what, sha256]

    def _inputs(self, records: Iterable[Mapping[str, Any]], are_paths: bool = False) -> Iterator[Link]:
        for record in records:
            name, sha256 = str(record["path"]), record["sha256"]
            if sha256 is None:
                yield Link("input", name, UNKNOWN, note="a URL: no hash was taken")
                continue
            path, same = self._places.file(name, sha256, are_paths)
            state = SAME if same else GONE if path is None else CHANGED
            yield Link("input", name, state, sha256, None if path is None else str(path))

    def _of_scorer(self, folder: Folder) -> Iterator[Link]:
        rubric, labels = folder.manifest.get("rubric"), folder.manifest.get("labels") or {}
        spec = orjson.loads((folder.root / "scorer.json").read_bytes())
        named = (spec.get("rubric") or {}).get("sha256")
        if rubric and named:
            found = sha256_bytes(canonical_json(rubric))
            yield Link("rubric", rubric.get("name", "rubric"), SAME if found == named else CHANGED, named)
        else:
            yield Link("rubric", "rubric", RECORDED if named else UNKNOWN, named)
        yield self._label_link(labels.get("file"))
        yield from self._inputs(labels.get("inputs") or ())

    def _label_link(self, file: Mapping[str, Any] | None) -> Link:
        if not file:
            return Link(LABELS, LABELS, UNKNOWN)
        name, sha256 = file["name"], file["sha256"]
        record = self._places.labels(sha256)
        path, same = self._places.file(name, sha256)
        if record is None or not same:
            return Link(LABELS, name, SAME if same else GONE, sha256, str(path) if same else None)
        return self._found(LABELS, name, sha256, record)

    def _of_labels(self, folder: Folder) -> Iterator[Link]:
        manifest = folder.manifest
        rubric = manifest["rubric"]
        yield Link("rubric", rubric["name"], RECORDED, rubric["digest"])
        judge = manifest.get("judge") or {}
        yield Link("judge", str(judge.get("name", "judge")), RECORDED)
        yield from self._inputs(manifest.get("inputs") or (), are_paths=True)

    def _of_rated(self, folder: Folder) -> Iterator[Link]:
        yield self._scorer(folder.manifest.get("scorer") or {}, _run_fact(folder, "scorer_folder"))
        yield from self._inputs(folder.manifest.get("inputs") or (), are_paths=True)

    def _scorer(self, scorer: Mapping[str, Any], hint: str | None = None) -> Link:
        link = self.folder_link("scorer", scorer.get("folder") or "scorer", scorer.get("digest"), hint)
        return _with_origin(link, scorer.get("origin"))

    def _of_expert(self, folder: Folder) -> Iterator[Link]:
        record = orjson.loads((folder.root / "expert.json").read_bytes())
        yield _base(record["base"])
        if router := record["options"].get("router"):
            yield self._by_file("mixture", "mixture", router)
        yield from self._selection(record["data"].get("selection") or {})

    def _selection(self, selection: Mapping[str, Any]) -> Iterator[Link]:
        runs = selection.get("runs") or ()
        for run in runs:
            yield self.folder_link("subsets", run["folder"], run["digest"])
        if not runs and selection.get("scorer"):
            yield Link("subsets", "subsets", UNKNOWN)
            yield self._scorer(selection["scorer"])

    def _of_mixture(self, folder: Folder) -> Iterator[Link]:
        record = orjson.loads((folder.root / "moe.json").read_bytes())
        yield _base(record["base"])
        for expert in record["experts"]:
            inner = folder.root / "experts" / expert["name"]
            found = self._found("expert", expert["name"], expert["adapter"], inner)
            used = folder.manifest["files"].get(f"experts/{expert['name']}/adapter_model.safetensors")
            if used != expert["adapter"]:
                found = Link(
                    "expert", expert["name"], CHANGED, expert["adapter"], str(inner), "not the router's expert"
                )
            yield _with_origin(found, expert.get("origin"))
        yield from self._selection(record["data"].get("selection") or {})

    def _of_answers(self, folder: Folder) -> Iterator[Link]:
        model, inputs = folder.manifest.get("model") or {}, folder.manifest.get("inputs") or {}
        if model.get("kind") in ("expert", "mixture"):
            weights = model.get("adapter") or model.get("router")
            yield _with_origin(self._by_file(model["kind"], model["kind"], weights), model.get("origin"))
        elif model.get("base"):
            yield _base(model["base"])
        yield from self._inputs({"path": name, "sha256": sha256} for name, sha256 in inputs.items())

    def _of_evaluation(self, folder: Folder) -> Iterator[Link]:
        for name, seeds in folder.manifest["systems"].items():
            for seed in seeds:
                yield self.folder_link("answers", name, seed["answers"])
        for name, scorer in folder.manifest["scorers"].items():
            yield self._scorer({"folder": name, **scorer})

    def _of_pairwise(self, folder: Folder) -> Iterator[Link]:
        for name, digests in folder.manifest["systems"].items():
            for digest in digests:
                yield self.folder_link("answers", name, digest)


def _base(base: Mapping[str, Any]) -> Link:
    return Link("base", base["name"], RECORDED, base["digest"])


def _with_origin(link: Link, origin: str | None) -> Link:
    if not origin:
        return link
    note = f"{link.note}; pulled from {origin}" if link.note else f"pulled from {origin}"
    return Link(link.what, link.name, link.state, link.sha256, link.place, note, link.made_from)


def _run_fact(folder: Folder, name: str) -> str | None:
    try:
        found = orjson.loads((folder.root / "run.json").read_bytes()).get(name)
    except (OSError, orjson.JSONDecodeError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _at(hint: str | None, digest: str) -> Path | None:
    """The place that a run noted, if the same folder is still there."""
    try:
        return Path(hint) if hint and open_folder(Path(hint)).digest == digest else None
    except EmpathyError:
        return None
