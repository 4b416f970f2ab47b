"""What goes wrong with a URL is one sentence, whichever package raises it, and holds no key."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from efficient_empathy.dialogues import plan_units, read_records, read_unit
from efficient_empathy.dialogues.files import file_size, find_files
from efficient_empathy.errors import EmpathyError

ROW = b'{"prompt":"a","response":"b"}\n'
PLACE = "user:SECRET@x"
FILES = {
    "notes.txt": b"x",
    "void/notes.txt": b"x",
    "empty.jsonl": b"",
    "object.json": b'{\n"a": 1\n}',
    "long.json": b"[" + b" " * 100 + b"]",
    "broken.parquet": b"PAR1 and no more",
    "broken.arrow": b"what is this, then?",
    "bad.jsonl": ROW + b"broken\n",
    "bad.csv": b'prompt,response\na,"open\n',
    "twice.csv": b"prompt,prompt\n",
    "latin.csv": b"prompt,\xe9\n",
}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.jsonl", "there is no file or folder 'memory://x/none.jsonl'"),
        ("notes.txt", "'memory://x/notes.txt' is of no known container"),
        ("*.nothing", "'memory://x/*.nothing' matches no file"),
        ("*.txt", "'memory://x/*.txt' matches 1 files, none of a known container"),
        ("void", "the folder 'memory://x/void' holds no file"),
        ("empty.jsonl", "the input is empty: 'memory://x/empty.jsonl'"),
        ("object.json", "'memory://x/object.json' holds one JSON object"),
        ("long.json", "'memory://x/long.json' is a JSON list of over"),
        ("broken.parquet", "'memory://x/broken.parquet' is not a Parquet file"),
        ("broken.arrow", "'memory://x/broken.arrow' is not an Arrow file"),
        ("bad.jsonl", "'memory://x/bad.jsonl', line 2: invalid-json"),
        ("bad.csv", "'memory://x/bad.csv', line 2: bad-csv-row"),
        ("bad.cs[v]", "'memory://x/bad.csv', line 2: bad-csv-row"),
        ("twice.csv", "'memory://x/twice.csv' must name each column differently"),
        ("latin.csv", "'memory://x/latin.csv' has a first line that cannot be read"),
    ],
)
def test_no_error_from_reading_holds_what_is_secret_in_a_url(monkeypatch, name, said):
    monkeypatch.setattr("efficient_empathy.dialogues.readers._MAX_LIST_BYTES", 50)
    monkeypatch.setattr("efficient_empathy.dialogues.blocks.BLOCK_BYTES", 20)
    system = fsspec.filesystem("memory")
    system.pipe({f"/{PLACE}/{file}": data for file, data in FILES.items()})
    try:
        with pytest.raises(EmpathyError) as caught:
            list(read_records([f"memory://{PLACE}/{name}"]))
    finally:
        system.rm(f"/{PLACE}", recursive=True)
    assert said in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert "user" not in str(caught.value)


class BackendError(Exception):
    """Of a package, and none of Python's own."""


class _Faulty(MemoryFileSystem):
    """Fails at the call that ``at`` names, with a message that holds everything."""

    protocol = "faulty"
    store, pseudo_dirs = {}, [""]
    at = ""

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("faulty:", "memory:"))

    def fail(self, call, path):
        if self.at == call:
            raise BackendError(f"denied: {path} (faulty:/{path}, key SECRET, of user:SECRET)")

    def info(self, path, **options):
        self.fail("info", path)
        return super().info(path, **options)

    def find(self, path, *args, **options):
        self.fail("find", path)
        return super().find(path, *args, **options)

    def glob(self, path, **options):
        self.fail("glob", path)
        return super().glob(path, **options)

    def _open(self, path, mode="rb", **options):
        self.fail("open", path)
        return _FaultyFile(self, path, self.store[path].getvalue())


class _FaultyFile(MemoryFile):
    """A file that can be opened."""

    def read(self, *size):
        self.fs.fail("read", self.path)
        return super().read(*size)


@pytest.fixture
def faulty(monkeypatch):
    fsspec.register_implementation("faulty", _Faulty, clobber=True)
    system = fsspec.filesystem("faulty")
    for name in ("a.jsonl", "b.json", "c.jsonl.gz", "d.parquet", "e.arrow", "saved/state.json"):
        system.store[f"/{PLACE}/{name}"] = MemoryFile(system, f"/{PLACE}/{name}", ROW)
    yield lambda at: monkeypatch.setattr(_Faulty, "at", at)
    system.store.clear()


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("a.jsonl", "info"),
        ("", "find"),
        ("*", "glob"),
        ("a.jsonl", "open"),
        *((name, "read") for name in ("a.jsonl", "b.json", "c.jsonl.gz", "d.parquet", "e.arrow", "saved")),
    ],
)
def test_errors_of_other_packages_are_one_sentence_while_units_are_planned(faulty, name, at):
    faulty(at)
    with pytest.raises(
        EmpathyError, match=r"cannot read 'faulty://x.*': denied: .*key …, of ….*Check the name"
    ) as caught:
        plan_units([f"faulty://{PLACE}/{name}"])
    assert "SECRET" not in str(caught.value)


def test_errors_of_other_packages_are_one_sentence_while_rows_are_read(faulty):
    (unit,) = plan_units([f"faulty://{PLACE}/a.jsonl"])
    faulty("read")
    with pytest.raises(EmpathyError, match=r"reading 'faulty://x/a.jsonl' failed: denied: .*again to go on") as caught:
        list(read_unit(unit))
    assert "SECRET" not in str(caught.value)


@pytest.fixture
def web():
    """A server that answers with the status that a path begins with; ``late`` refuses once the size is known."""
    pytest.importorskip("aiohttp", reason="aiohttp is what https:// needs")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status = int(self.path[1:4]) if self.path[1:4].isdigit() else 200 if self.command == "HEAD" else 403
            self.send_response(status)
            self.send_header("Content-Length", "100" if status == 200 else "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *args):
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("404/x.jsonl", "there is no file or folder 'http://127.0.0.1:{port}/404/x.jsonl'; check the name"),
        ("403/x.jsonl", "cannot read 'http://127.0.0.1:{port}/403/x.jsonl': 403, message='Forbidden'"),
        ("503/x.jsonl", "cannot read 'http://127.0.0.1:{port}/503/x.jsonl': 503"),
        ("late/x.jsonl", "cannot read 'http://127.0.0.1:{port}/late/x.jsonl': 403, message='Forbidden'"),
    ],
)
def test_what_a_web_server_answers_is_said(web, name, said):
    with pytest.raises(EmpathyError) as caught:
        plan_units([f"http://{web}/{name}?sig=SECRET%20KEY"])
    assert said.format(port=web.split(":")[1]) in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_server_that_cannot_be_reached_is_no_missing_file():
    pytest.importorskip("aiohttp", reason="aiohttp is what https:// needs")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x.jsonl"
        for act in (plan_units, lambda urls: file_size(urls[0])):
            with pytest.raises(
                EmpathyError, match=r"cannot read '.*': Connect call failed.* and the connection"
            ) as caught:
                act([f"{url}?sig=SECRET"])
            assert "SECRET" not in str(caught.value)


def test_what_is_wrong_in_this_program_stays_a_traceback(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(ROW)

    def broken(*_):
        raise KeyError("a mistake of ours")

    monkeypatch.setattr("efficient_empathy.dialogues.units._line_units", broken)
    assert find_files([str(tmp_path)])
    with pytest.raises(KeyError):
        plan_units([str(tmp_path)])
