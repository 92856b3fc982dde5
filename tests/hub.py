"""A stand-in of the Hugging Face hub: what creating a repository and a commit ask of it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HEAD = "0" * 40
"""The commit that a repository is born with."""


@dataclass
class Hub:
    """What was put there, and what it answers instead, by the part of a path."""

    refuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    licenses: dict[str, str] = field(default_factory=dict)
    """Of models by their id, of data sets as `datasets/ID`."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and the token of each request."""
    large: dict[str, bytes] = field(default_factory=dict)
    address: str = ""


@contextmanager
def serving() -> Iterator[Hub]:
    """The stand-in, on a port of its own."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: Any) -> None:
            return

        def answer(self, data: Any, status: int = 200, **headers: str) -> None:
            body = json.dumps(data).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def take(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            path = self.path.partition("?")[0]
            if path != "/api/agent-harnesses":  # huggingface_hub's own, once a process
                hub.asked.append((self.command, path, token))
            for part, (status, words) in hub.refuses.items():
                if part in path:
                    self.answer({"error": words}, status, X_Error_Message=words)
                    return
            respond(self, path, body)

        do_GET = do_POST = do_PUT = take

    def private(made: dict[str, Any]) -> bool:
        return bool(made.get("private")) or made.get("visibility") == "private"

    def respond(handler: Any, path: str, body: bytes) -> None:
        if path == "/api/whoami-v2":
            handler.answer({"name": "ada", "type": "user", "auth": {}})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'ada'}/{asked['name']}"
            if name in hub.repositories:
                words = "You already created this model repo"
                handler.answer({"error": words}, 409, X_Error_Message=words)
                return
            hub.repositories[name] = asked
            handler.answer({"url": f"{hub.address}/{name}", "name": name, "id": name})
        elif "/preupload/" in path:
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            handler.answer({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            handler.answer({"transfer": "basic", "objects": objects})
        elif path.startswith("/lfs/"):
            hub.large[path.rpartition("/")[2]] = body
            handler.answer({})
        elif "/commit/" in path:
            made = hub.repositories[path.removeprefix("/api/models/").partition("/commit/")[0]]
            for line in body.splitlines():
                told = json.loads(line)
                value = told["value"]
                if told["key"] != "header":
                    made.setdefault("files", []).append(value["path"])
                elif value.get("parentCommit", made.get("sha", HEAD)) != made.get("sha", HEAD):
                    handler.answer({"error": "A commit has happened since"}, 412)
                    return
                if told["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif told["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.large[value["oid"]]
            handler.answer(
                {
                    "commitUrl": f"{hub.address}/ada/demo/commit/{'1' * 40}",
                    "commitOid": "1" * 40,
                    "pullRequestUrl": None,
                }
            )
        elif path == "/api/validate-yaml":
            handler.answer({"errors": [], "warnings": []})
        elif (name := path.removeprefix("/api/models/")) in hub.repositories:
            found = hub.repositories[name]
            files = [".gitattributes", *found.get("files", [])]
            about = {"id": name, "sha": found.get("sha", HEAD), "private": private(found)}
            handler.answer({**about, "siblings": [{"rfilename": file} for file in files]})
        elif (
            path.startswith(("/api/models/", "/api/datasets/"))
            and (name := path.removeprefix("/api/").removeprefix("models/")) in hub.licenses
        ):
            handler.answer(
                {"id": name, "cardData": {"license": hub.licenses[name]}, "siblings": []}
            )
        else:
            handler.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
