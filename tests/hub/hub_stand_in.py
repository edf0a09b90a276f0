"""A local server with what agents need of the Hugging Face hub's API: upload (over LFS, without Xet) and download."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_stand_in"
# As in the `.gitattributes` that the hub gives to new repositories
LARGE = (".zip", ".pkl", ".mp4")


class Hub(ThreadingHTTPServer):
    """The server. Its repositories are dictionaries of files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.objects: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def variables(self, cache: Path) -> dict[str, str]:
        """Environment variables with which huggingface_hub talks to this server."""
        own = {"HF_ENDPOINT": self.address, "HF_TOKEN": TOKEN, "HF_HOME": str(cache)}
        return {**own, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class Requests(BaseHTTPRequestHandler):
    """Answers requests."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        # In chunks, as files are sent
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def do_GET(self) -> None:
        _, owner, name, action, _, file = self.path.split("/", 5)
        files = self.server.repositories.get(f"{owner}/{name}")
        if files is None or action != "resolve":
            self.answer(404, X_Error_Code="RepoNotFound")
        elif file not in files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        else:
            etag = hashlib.sha256(files[file]).hexdigest()
            self.answer(200, files[file], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        content = self.body()
        same = hashlib.sha256(content).hexdigest() == self.path.removeprefix("/objects/")
        self.server.objects[self.path.removeprefix("/objects/")] = content
        self.answer(200 if same else 400)

    def do_POST(self) -> None:
        lines = [json.loads(line) for line in self.body().splitlines()]
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer(401)
        elif self.path == "/api/validate-yaml":
            metadata = yaml.safe_load(lines[0]["content"].split("---\n")[1])
            self.answer(200, {"errors": [], "warnings": []}) if isinstance(metadata, dict) else self.answer(400)
        elif self.path == "/api/repos/create":
            repository = f"{lines[0]['organization']}/{lines[0]['name']}"
            known = repository in self.server.repositories
            self.server.repositories.setdefault(repository, {})
            self.answer(409 if known else 200, {"url": f"{self.server.address}/{repository}"})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self.answer(200, {"objects": [self.upload_of(each) for each in lines[0]["objects"]]})
        elif match := re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", self.path):
            self.answer(200, self.modes(lines[0]) if match[2] == "preupload" else self.commit(match[1], lines))
        else:
            self.answer(404)

    def upload_of(self, described: dict[str, Any]) -> dict[str, Any]:
        return {**described, "actions": {"upload": {"href": f"{self.server.address}/objects/{described['oid']}"}}}

    @staticmethod
    def modes(described: dict[str, Any]) -> dict[str, Any]:
        modes = {each["path"]: "lfs" if each["path"].endswith(LARGE) else "regular" for each in described["files"]}
        return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> dict[str, str]:
        files = self.server.repositories[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            else:
                large = line["key"] == "lfsFile"
                files[value["path"]] = self.server.objects[value["oid"]] if large else base64.b64decode(value["content"])
        return {"commitUrl": f"{self.server.address}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve until the end of the block."""
    with Hub() as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()
