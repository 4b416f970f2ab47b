"""The output folder of a run that can be killed and continued: its plan, its lock, and what is left over."""

import contextlib
import fnmatch
import glob
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from efficient_empathy.dialogues.files import file_size, find_files, forget_sizes
from efficient_empathy.dialogues.paths import is_url, kept_name, shown_path
from efficient_empathy.environment import usable_cores
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import MANIFEST, pretty_json, sha256_file, write_atomic
from efficient_empathy.scorer.outputs import writing

STATE = ".units"
RUN_FACTS = "run.json"
REJECTED = "rejected"
_PLAN = "plan.json"
_PART = re.compile(r"part-\d{5,}\.(jsonl|parquet)")


def temporary_folder(out: Path) -> Path:
    """Where files grow before they take their names."""
    return out / STATE / "unfinished"


def record_path(out: Path, index: int) -> Path:
    """The record that makes a unit done."""
    return out / STATE / f"{index:05d}.json"


def check_places(out: Path, inputs: Sequence[str], paths: Sequence[str], written: Iterable[str]) -> None:
    """See that no input can be overwritten, and that a later run cannot take outputs for inputs.

    Args:
        out: the output folder.
        inputs: names as they were given.
        paths: the files that they stand for.
        written: names, relative to the output folder, of files like those that it will hold.

    Raises:
        EmpathyError: the output folder is an input, lies in an input folder, holds an input, or would match a pattern.
    """
    target = out.resolve()
    files = [target / name for name in written]
    for name in inputs:
        if glob.has_magic(name) and not is_url(name) and any(_matches(_parts_of(name), path.parts) for path in files):
            raise EmpathyError(
                f"the pattern '{name}' would match what is written to '{out}'; choose another folder with -o."
            )
        given = Path(name).resolve()
        if not is_url(name) and (given == target or (given.is_dir() and given in target.parents)):
            raise EmpathyError(f"the output folder '{out}' is or lies in the input '{name}'; choose another with -o.")
    for name in paths:
        if not is_url(name) and target in Path(name).resolve().parents:
            raise EmpathyError(f"the input '{name}' lies in the output folder '{out}'; choose another folder with -o.")


def _parts_of(pattern: str) -> tuple[str, ...]:
    """A glob's absolute parts; the folder that it starts from with links followed."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return (*Path(*parts[:fixed]).resolve().parts, *parts[fixed:])


def _matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether ``glob`` with ``recursive`` would find a path."""
    if not pattern or not parts:
        return all(part == "**" for part in pattern) and not parts
    if pattern[0] == "**" and (_matches(pattern[1:], parts) or _matches(pattern, parts[1:])):
        return True
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(pattern[1:], parts[1:])


def check_ours(out: Path) -> None:
    """See that the folder is new, empty, or one that a run wrote.

    Raises:
        EmpathyError: it holds something else, or is a file.
    """
    if out.is_dir() and not (out / STATE / _PLAN).is_file() and any(path.name != STATE for path in out.iterdir()):
        raise EmpathyError(f"the folder '{out}' is not empty, and no run of ee-cli wrote it; choose another with -o.")
    if out.exists() and not out.is_dir():
        raise EmpathyError(f"'{out}' is a file; choose a folder with -o.")


@contextlib.contextmanager
def opened(out: Path) -> Iterator[None]:
    """Make the folder, or see that it is one of ours, and keep every other run out of it.

    Raises:
        EmpathyError: it holds something else, cannot be written to, or another run works in it.
    """
    check_ours(out)
    with contextlib.ExitStack() as stack:
        with writing(out):
            (out / STATE).mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(out / STATE / "lock", "wb"))
        _lock(lock, out)
        yield


def _lock(file: Any, out: Path) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:
        return  # not on this system: two runs at once are the user's own care there
    try:
        # The system lets go of it when the process ends, however it ends.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EmpathyError(
            f"another run is working in '{out}'; wait for it, or choose another folder with -o."
        ) from None
    except OSError:
        return  # a file system without locks


def read_plan(out: Path) -> dict[str, Any] | None:
    """What the run that wrote the folder was told; None in a new folder."""
    try:
        return orjson.loads((out / STATE / _PLAN).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_plan(out: Path, plan: Mapping[str, Any]) -> None:
    """Note what the run is told, as ``kept`` gives it; from now on the folder is ours."""
    write_atomic(out / STATE / _PLAN, pretty_json(kept(plan)))


def kept(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan as it is written: of URLs nothing that may be a secret."""
    lists = {part: plan[part] for part in ("inputs", "units") if part in plan}
    return {
        **plan,
        **{part: [{**one, "path": kept_name(one["path"])} for one in records] for part, records in lists.items()},
    }


def units_of(plan: Mapping[str, Any], paths: Sequence[str]) -> list[dict[str, Any]]:
    """The units of a plan that was read, with the paths that they stand for."""
    real = {kept_name(path): path for path in paths}
    return [{**unit, "path": real[unit["path"]]} for unit in plan["units"]]


def input_sizes(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Path and bytes of each input file, in order; bytes are None where they cannot be told."""
    return [{"path": path, "bytes": file_size(path)} for path in paths]


def describe_inputs(paths: Sequence[str], plan: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Path, bytes, SHA-256 and time of change of each input file, in order.

    A hash of the old plan is taken over where size and time of change are the same, so that a finished run is
    recognised at once.
    """
    known = {record["path"]: record for record in (plan or {}).get("inputs", ())}
    # Hashing lets other threads run, and many large files take their time.
    with ThreadPoolExecutor(usable_cores()) as threads:
        return list(threads.map(lambda path: _describe_input(path, known.get(path)), paths))


def hashed_inputs(inputs: Sequence[str]) -> list[dict[str, Any]]:
    """Path, bytes and SHA-256 of every file that some inputs name: what a manifest says of the data."""
    return said_of_inputs(describe_inputs(find_files(inputs), None))


def said_of_inputs(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a manifest says of described inputs: path, bytes and SHA-256."""
    return [{**{key: r[key] for key in ("path", "bytes", "sha256")}, "path": shown_path(r["path"])} for r in records]


def _describe_input(name: str, known: Mapping[str, Any] | None) -> dict[str, Any]:
    path = Path(name)
    if is_url(name) or not path.is_file():
        return {"path": name, "bytes": file_size(name), "sha256": None, "mtime_ns": None}
    status = path.stat()
    same = known is not None and (known["bytes"], known["mtime_ns"]) == (status.st_size, status.st_mtime_ns)
    digest = known["sha256"] if known is not None and same else sha256_file(path)
    return {"path": name, "bytes": status.st_size, "sha256": digest, "mtime_ns": status.st_mtime_ns}


def noted_inputs(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Path, bytes and time of change of each input file, for ``changed_input``."""
    records = []
    for name in paths:
        status = Path(name).stat() if not is_url(name) and Path(name).is_file() else None
        known = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns} if status else {"mtime_ns": None}
        records.append({"path": name, **known})
    return records


def changed_input(inputs: Sequence[Mapping[str, Any]]) -> str | None:
    """The first input file that is no longer as it was when the run began; None when all are. Of a URL the size is compared."""
    urls = [record for record in inputs if is_url(record["path"]) and record.get("bytes") is not None]
    forget_sizes(record["path"] for record in urls)
    with ThreadPoolExecutor(usable_cores()) as threads:
        sizes = threads.map(lambda record: file_size(record["path"]), urls)
        for record, size in zip(urls, sizes, strict=True):
            if size != record["bytes"]:
                return shown_path(record["path"])
    for record in inputs:
        if record["mtime_ns"] is None:
            continue
        path = Path(record["path"])
        if not path.is_file() or (path.stat().st_size, path.stat().st_mtime_ns) != (
            record["bytes"],
            record["mtime_ns"],
        ):
            return record["path"]
    return None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What keeps a run from continuing another: one phrase for each part of the plans, as ``kept``, that differs."""
    found = []
    before = {record["path"]: _content(record) for record in old["inputs"]}
    now = {record["path"]: _content(record) for record in new["inputs"]}
    if before != now:
        paths = [path for path in {**before, **now} if before.get(path) != now.get(path)]
        what = "is new" if paths[0] not in before else "is gone" if paths[0] not in now else "has changed"
        more = f", and {len(paths) - 1} more" if len(paths) > 1 else ""
        found.append(f"the inputs ('{paths[0]}' {what}{more})")
    elif list(before) != list(now):
        found.append("the order of the inputs")
    for part in ("scorer", "policy", "options"):
        if old[part] != new[part]:
            found.append(f"the {part} ({_changes(old[part] or {}, new[part] or {})})")
    if not found and old.get("engine") != new.get("engine"):
        found.append("the version of efficient-empathy")
    return found


def _content(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record["bytes"], record["sha256"]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {_short(old.get(key))}, is {_short(new.get(key))}" for key in keys[:3])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= 60 else f"{text[:24]}…"


def remove_leftovers(out: Path) -> None:
    """Remove what a killed run was still writing."""
    with writing(out):
        shutil.rmtree(temporary_folder(out), ignore_errors=True)
        for path in (*out.glob(".*.tmp"), *(out / STATE).glob(".*.tmp")):
            path.unlink(missing_ok=True)


def wipe(out: Path, plan: Mapping[str, Any]) -> None:
    """Remove what a run wrote, and nothing else; its plan goes last, so that the folder is ours to the end."""
    with writing(out):
        for name in (MANIFEST, RUN_FACTS):
            (out / name).unlink(missing_ok=True)
        for path in (out / STATE).glob("[0-9]*.json"):
            path.unlink()
        for name in (*plan["folders"], REJECTED):
            folder = out / name
            for path in folder.glob("part-*"):
                if _PART.fullmatch(path.name):
                    path.unlink()
            with contextlib.suppress(OSError):  # it holds something that is not ours: that stays
                folder.rmdir()
        (out / STATE / _PLAN).unlink(missing_ok=True)
