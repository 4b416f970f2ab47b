"""A small Hub in this process: speaks the calls that pushing and pulling make, and keeps what is really sent."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("huggingface_hub", reason="huggingface_hub is part of the hub extra")

ROOT = Path(__file__).parents[2]
CANARY = "hf_canarycanarycanarycanary"
START = "import sys; sys.argv[0] = 'ee-cli'; from efficient_empathy.cli import main; main()"


class Repo:
    """Files of each commit, and the commit of each branch."""

    def __init__(self, private: bool):
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """A new state of a branch."""
        sha = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch, or the commit itself."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubServer:
    """Repositories by name; files over 200 bytes go the way of large files, by a PUT of their own."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.tamper: Callable[[str, bytes], bytes] = lambda path, data: data
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size)
                path = unquote(urlsplit(self.path).path)
                outer.calls.append(f"{self.command} {path}")
                signed_in = self.headers.get("Authorization") == f"Bearer {CANARY}"
                status, headers, data = outer.answer(self.command, path, body, signed_in)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_HEAD = _handle

            def log_message(self, *args: Any) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def answer(self, method: str, path: str, body: bytes, signed_in: bool) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a call."""
        if found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            return self._file(found[1], found[2], found[3], signed_in)
        if not signed_in and method != "GET" and not path.startswith("/large/"):
            return self._error(401, None)
        if method == "PUT" and path.startswith("/large/"):
            self.large[path.removeprefix("/large/")] = body
            return 200, {}, b""
        if found := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"warnings": [], "errors": []})
        if (found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)", path)) and found[1] in self.repos:
            return self._json({"id": found[1], "private": self.repos[found[1]].private})
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(\w+)/(.+)", path):
            if found[1] not in self.repos:
                return self._error(404, "RepoNotFound")
            return self._api(found[1], found[2], found[3], body)
        return self._error(404, None)

    def _create(self, wanted: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.repos:
            return 409, {"Content-Type": "application/json"}, json.dumps({"url": f"{self.url}/{name}"}).encode()
        self.repos[name] = Repo(bool(wanted.get("private")))
        return self._json({"url": f"{self.url}/{name}"})

    def _api(self, name: str, call: str, rest: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        repo = self.repos[name]
        if call == "branch":
            if rest in repo.branches:
                return self._error(409, None)
            repo.branches[rest] = repo.branches["main"]
            return self._json({})
        if call == "preupload":
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] > 200 else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self._json({"files": modes})
        if call == "tree":
            files = repo.commits[repo.branches[rest]]
            return self._json([{"type": "file", "path": p, "size": len(d), "oid": "0" * 40} for p, d in files.items()])
        assert call == "commit"
        files = dict(repo.commits[repo.branches[rest]])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(rest, files)
        return self._json({"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None})

    def _batch(self, wanted: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        objects = [
            {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{self.url}/large/{o['oid']}"}}}
            for o in wanted["objects"]
        ]
        return self._json({"transfer": "basic", "objects": objects})

    def _file(self, name: str, revision: str, path: str, signed_in: bool) -> tuple[int, dict[str, str], bytes]:
        repo = self.repos.get(name)
        if repo is None or (repo.private and not signed_in):
            return self._error(401, "RepoNotFound")
        commit = repo.find(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        if path not in repo.commits[commit]:
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
        data = self.tamper(path, repo.commits[commit][path])
        tag = hashlib.sha256(repo.commits[commit][path]).hexdigest()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}, data

    def _error(self, status: int, code: str | None, headers: dict[str, str] | None = None) -> Any:
        return status, {**({"X-Error-Code": code} if code else {}), **(headers or {})}, b""

    def _json(self, value: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    """A running Hub without repositories."""
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def ee(hub_server: HubServer, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``ee-cli`` against that Hub, with a login and a cache of its own; the token is in nothing that it writes."""

    def run(*words: Any, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": hub_server.url,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN": CANARY,
            "HF_HUB_VERBOSITY": "debug",
            **variables,
        }
        command = [sys.executable, "-c", START, *map(str, words)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert CANARY not in result.stdout + result.stderr
        return result

    return run
