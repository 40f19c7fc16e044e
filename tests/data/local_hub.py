"""A hub on this machine: what `datasets` and `huggingface_hub` ask the Hugging Face hub for, answered from memory.

The libraries themselves resolve revisions, list files and read them over HTTP, as they do from the hub; nothing of them
is replaced but the address.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

_ADDRESS = re.compile(r"/(api/)?datasets/(?P<name>[^/]+/[^/]+)(/(?P<what>revision|tree|resolve)/(?P<rest>.+))?")
_REVISION = re.compile(r"(?P<revision>refs/[^/]+/[^/]+|[^/]+)(/(?P<path>.*))?")


@dataclass
class LocalHub:
    """Data sets by name: their commits, and what branches and tags stand for.

    asked: every address that was asked for.
    """

    commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    refs: dict[tuple[str, str], str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def commit(self, name: str, files: Mapping[str, str], *refs: str) -> str:
        """Add a commit with these files; `refs` (none: `main`) stand for it from now on. Returns its 40 digits."""
        content = {path: text.encode() for path, text in files.items()}
        digits = hashlib.sha1(repr((len(self.commits), sorted(content.items()))).encode()).hexdigest()
        self.commits[name, digits] = content
        self.refs |= {(name, ref): digits for ref in refs or ("main",)}
        return digits


@contextmanager
def served(hub: LocalHub, cache: Path) -> Iterator[None]:
    """Be the hub for this process; what the libraries keep goes to `cache`."""
    import datasets.config
    from huggingface_hub import HfFileSystem, constants, file_download

    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    HfFileSystem.clear_instance_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(constants, "ENDPOINT", address)
        for module in (constants, file_download):  # the latter before version 1 of huggingface_hub
            template = address + "/{repo_id}/resolve/{revision}/{filename}"
            patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(datasets.config, "HF_ENDPOINT", address)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            HfFileSystem.clear_instance_cache()


@contextmanager
def offline() -> Iterator[None]:
    """As HF_HUB_OFFLINE=1, which is read when the libraries are imported."""
    import datasets.config
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        address = unquote(urlsplit(self.path).path)
        self.hub.asked.append(address)
        match = _ADDRESS.fullmatch(address)
        if match is None or not any(name == match["name"] for name, _ in self.hub.commits):
            return self._missing("RepoNotFound")
        where = _REVISION.fullmatch(match["rest"] or "main")
        assert where is not None
        commit = self.hub.refs.get((match["name"], where["revision"]), where["revision"])
        files = self.hub.commits.get((match["name"], commit))
        if files is None:
            return self._missing("RevisionNotFound")
        path = where["path"] or ""
        if match["what"] == "resolve":
            return self._file(files, path, commit)
        if match["what"] == "tree":
            return self._tree(files, path)
        siblings = [{"rfilename": name} for name in files]
        return self._json({"id": match["name"], "sha": commit, "private": False, "tags": [], "siblings": siblings})

    do_HEAD = do_GET

    def _file(self, files: dict[str, bytes], path: str, commit: str) -> None:
        if path not in files:
            return self._missing("EntryNotFound")
        content = files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._answer(206, content[first : last + 1], headers)
        return self._answer(200, content, headers)

    def _tree(self, files: dict[str, bytes], path: str) -> None:
        below = f"{path}/" if path else ""
        inside = [name for name in files if name.startswith(below)]
        if not inside:
            return self._missing("EntryNotFound")
        found = []
        for name in reversed(inside):  # not in order: nothing may count on that
            if "recursive=true" in self.path.lower() or "/" not in name.removeprefix(below):
                digest = hashlib.sha1(files[name]).hexdigest()
                found.append({"type": "file", "path": name, "size": len(files[name]), "oid": digest})
        folders = {below + name.removeprefix(below).split("/")[0] for name in inside if "/" in name.removeprefix(below)}
        return self._json(found + [{"type": "directory", "path": name, "oid": "0" * 40} for name in folders])

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._answer(404, b"", {"X-Error-Code": code})

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
