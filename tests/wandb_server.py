"""A small W&B server on 127.0.0.1 for tests: GraphQL, the file stream and uploads, kept in memory.

    with Server() as server:
        environment(server.url, monkeypatch)

A document that ``wandb_schema.graphql`` does not know is refused, and
noted in ``refused``; ``status`` makes every answer an error; ``asked`` has the names of the documents, in their order.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

graphql = pytest.importorskip("graphql")  # graphql-core

SCHEMA = Path(__file__).with_name("wandb_schema.graphql")
KEY = "0123456789abcdef" * 2 + "01234567"
ENTITY = "someone"


@dataclass
class Run:
    """A run, as far as it has arrived; the fields of ``type Run`` are attributes and methods."""

    server: Server
    name: str
    projectName: str
    displayName: str | None = None
    group: str | None = None
    jobType: str | None = None
    tags: list[str] = field(default_factory=list)
    configuration: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)  # of the file stream, by file
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    stopped = False
    description = notes = sweepName = None

    @property
    def id(self) -> str:
        return f"run-{self.name}"

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration without W&B's wrapping."""
        return {key: each["value"] for key, each in self.configuration.items() if key != "_wandb"}

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.lines.get("wandb-summary.json", ["{}"])[-1])

    @property
    def config(self) -> str:
        return json.dumps(self.configuration)

    def wandbConfig(self, info: Any, keys: list[str] | None = None) -> str:
        kept = self.configuration.get("_wandb", {}).get("value", {})
        return json.dumps({key: kept[key] for key in keys or kept if key in kept})

    @property
    def summaryMetrics(self) -> str:
        return json.dumps(self.summary)

    @property
    def project(self) -> Project:
        return Project(self.server, self.projectName)

    def _count(self, name: str) -> int:
        return len(self.lines.get(name, []))

    @property
    def historyLineCount(self) -> int:
        return self._count("wandb-history.jsonl")

    @property
    def eventsLineCount(self) -> int:
        return self._count("wandb-events.jsonl")

    @property
    def logLineCount(self) -> int:
        return self._count("output.log")

    @property
    def historyTail(self) -> str:
        return json.dumps(self.lines.get("wandb-history.jsonl", [])[-1:])

    @property
    def eventsTail(self) -> str:
        return json.dumps(self.lines.get("wandb-events.jsonl", [])[-1:])

    def stream(self, sent: dict[str, Any]) -> None:
        """Take a request of the file stream: each file's lines from an offset on."""
        for name, part in sent.get("files", {}).items():
            lines = self.lines.setdefault(name, [])
            offset = part["offset"] if name != "wandb-summary.json" else 0
            lines[offset : offset + len(part["content"])] = part["content"]
        if sent.get("complete"):
            self.exit_code = sent.get("exitcode")


@dataclass
class Project:
    """A project; it exists as soon as it is asked for."""

    server: Server
    name: str
    entityName: str = ENTITY
    createdAt = "2026-01-01T00:00:00"
    isBenchmark = False
    description = access = views = None

    @property
    def id(self) -> str:
        return f"project-{self.name}"

    internalId = id

    @property
    def entity(self) -> dict[str, Any]:
        return {"id": "entity", "name": self.entityName}

    def run(self, info: Any, name: str) -> Run | None:
        return self.server.runs.get(name)

    def bucket(self, info: Any, name: str, missingOk: bool = False) -> Run | None:
        return self.server.runs.get(name)

    def artifact(self, info: Any, name: str) -> None:
        """None is known by its name."""


class Root:
    """The fields of ``Query`` and ``Mutation``."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def viewer(self, info: Any) -> dict[str, Any]:
        return {
            "id": "user",
            "entity": ENTITY,
            "username": ENTITY,
            "name": ENTITY,
            "email": "someone@localhost",
            "flags": "{}",
            "teams": {"edges": [{"node": {"id": "entity", "name": ENTITY}}]},
        }

    def serverInfo(self, info: Any) -> dict[str, Any]:
        return {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "features": []}

    def entity(self, info: Any, name: str) -> dict[str, Any]:
        return {"id": "entity", "name": name}

    def project(self, info: Any, name: str, entityName: str | None = None) -> Project:
        return Project(self.server, name, entityName or ENTITY)

    model = project

    def models(self, info: Any, **_: Any) -> dict[str, Any]:
        names = dict.fromkeys(run.projectName for run in self.server.runs.values())
        edges = [{"node": Project(self.server, name)} for name in names]
        return {"pageInfo": {"hasNextPage": False}, "edges": edges}

    def upsertModel(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        project = Project(self.server, input["name"])
        return {"model": project, "project": project, "inserted": False}

    def upsertBucket(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        runs, name = self.server.runs, input.get("name") or input["id"].removeprefix("run-")
        inserted = name not in runs
        run = runs.setdefault(name, Run(self.server, name, input.get("modelName") or "uncategorized"))
        for key, kept in (("displayName", "displayName"), ("groupName", "group"), ("jobType", "jobType")):
            setattr(run, kept, input.get(key) or getattr(run, kept))
        run.tags = input.get("tags") or run.tags
        if input.get("config"):
            run.configuration = json.loads(input["config"])
        return {"bucket": run, "inserted": inserted}

    def createRunFiles(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        run = self.server.runs[input["runName"]]
        files = [{"name": each, "uploadUrl": self.server.upload(run.name, each)} for each in input["files"]]
        return {"runID": run.id, "uploadHeaders": [], "files": files}

    def markRunFilesUploaded(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        return {"success": True}

    def createArtifact(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        self.server.artifacts.append(input)
        return {"artifact": self._artifact(len(self.server.artifacts))}

    def _artifact(self, number: int | str) -> dict[str, Any]:
        name = f"artifact-{number}"
        sequence = {"id": "sequence", "latestArtifact": None}
        return {"id": name, "state": "PENDING", "digest": "digest", "artifactSequence": sequence}

    def createArtifactManifest(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        number = input["artifactID"]
        file = {"id": "file", "uploadUrl": self.server.upload(number, "manifest.json"), "uploadHeaders": []}
        return {"artifactManifest": {"id": f"manifest-{number}", "file": file}}

    def updateArtifactManifest(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        number = input["artifactManifestID"].removeprefix("manifest-")
        return self.createArtifactManifest(info, {"artifactID": number})

    def createArtifactFiles(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "uploadUrl": self.server.upload(each["artifactID"], each["name"]),
                "uploadHeaders": [],
                "storagePath": each["name"],
                "artifact": self._artifact(each["artifactID"].removeprefix("artifact-")),
            }
            for each in input["artifactFiles"]
        ]
        return {"files": {"edges": [{"node": node} for node in nodes]}}

    def commitArtifact(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        return {"artifact": self._artifact(input["artifactID"].removeprefix("artifact-"))}

    def upsertView(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        self.server.views.append({**input, "spec": json.loads(input["spec"])})
        project = Project(self.server, input["projectName"], input["entityName"])
        view = {**input, "id": f"view-{len(self.server.views)}", "updatedAt": "2026-01-01T00:00:00", "project": project}
        return {"view": view, "inserted": True}


class _Http(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: a client that ends resets its connections."""


class Server:
    """The server; it listens from its creation to ``close``."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.views: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.uploaded: dict[str, dict[str, bytes]] = {}  # by artifact
        self.asked: list[str] = []
        self.refused: list[str] = []
        self.status: int | None = None
        self._schema = graphql.build_schema(SCHEMA.read_text())
        self._lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"fake": self})
        self._http = _Http(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()

    def upload(self, owner: str, name: str) -> str:
        return f"{self.url}/upload/{owner}/{quote(name)}"

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """The status and the content of the answer to a request."""
        if self.status is not None:
            return self.status, {"errors": [{"message": "as the test wants it"}]}
        with self._lock:
            if path == "/graphql":
                return self._graphql(json.loads(body))
            kind, _, rest = path.lstrip("/").partition("/")
            if kind == "upload":
                owner, _, name = rest.partition("/")
                files = self.runs[owner].files if owner in self.runs else self.uploaded.setdefault(owner, {})
                files[unquote(name)] = body
                return 200, {}
            if kind == "files" and path.endswith("/file_stream"):
                self.runs[path.split("/")[-2]].stream(json.loads(body))
                return 200, {"limits": {}}
        self.refused.append(f"{method} {path}")
        return 404, {}

    def _graphql(self, sent: dict[str, Any]) -> tuple[int, Any]:
        result = graphql.graphql_sync(
            self._schema, sent["query"], Root(self), variable_values=sent.get("variables"),
            operation_name=sent.get("operationName") or None,
        )  # fmt: skip
        names = [each.name.value for each in graphql.parse(sent["query"]).definitions if each.name]
        self.asked.append(names[0] if names else sent["query"])
        self.refused += [f"{self.asked[-1]}: {error}" for error in result.errors or ()]
        return 200, result.formatted


class _Handler(BaseHTTPRequestHandler):
    fake: Server
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, content = self.fake.answer(self.command, self.path, body)
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_CONNECT = _answer

    def log_message(self, *_: object) -> None:
        pass


def environment(url: str, patch: pytest.MonkeyPatch) -> None:
    """Direct W&B's packages to the server at ``url``, and whatever they would send elsewhere too."""
    for name in ("WANDB_MODE", "WANDB_SILENT"):
        patch.delenv(name, raising=False)
    variables = {
        "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false",
        "HTTP_PROXY": url, "HTTPS_PROXY": url, "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    for name, value in variables.items():
        patch.setenv(name, value)
