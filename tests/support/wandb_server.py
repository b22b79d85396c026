"""The part of the W&B server used by the wandb 0.31 client, on 127.0.0.1, for tests.

Supports login, run upsert, resume, file stream, uploads, artifacts, and sweeps of one trial. As on the real server, a
row with a known line offset is stored only once. Uses only the standard library.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "tester"
SWEEP = "sweep001"


@dataclass
class StoredRun:
    """What the server knows about one run."""

    name: str
    project: str
    config: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    upserts: int = 0


@dataclass
class StoredArtifact:
    """What the server knows about one artifact."""

    name: str
    type: str
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


class WandbServer(ThreadingHTTPServer):
    """Serves until `stop`; `hang` blocks every later request, like a server whose database has stopped."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.runs: dict[str, StoredRun] = {}
        self.artifacts: list[StoredArtifact] = []
        self.sweep = ""
        self.trial: dict[str, Any] = {}
        self.requests: list[str] = []
        self.hang = False
        self.refuse_key = False
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The value for WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections broken by killed clients; show any other error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """Refuse connections from now on."""
        self.shutdown()
        self.server_close()

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The answer to one GraphQL request; `{}` for requests the client can do without."""
        operation = query.split("(")[0].split("{")[0].split()[-1]
        self.requests.append(operation)
        match operation:
            case "Viewer":
                flags = json.dumps({"code_saving_enabled": False})
                viewer = {"id": "u1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": flags}
                return {"viewer": viewer | {"teams": {"edges": []}}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus":
                return {"model": self._resume_status(variables["name"])}
            case "UpsertBucket":
                return {"upsertBucket": self._upsert(variables)}
            case "CreateRunFiles":
                base = f"{self.url}/upload/{variables['run']}"
                files = [{"name": name, "uploadUrl": f"{base}/{name}"} for name in variables["files"]]
                return {"createRunFiles": {"runID": "id", "uploadHeaders": [], "files": files}}
            case "UpsertSweep" | "SweepWithRuns" | "CreateAgent" | "Heartbeat":
                return self._sweep(operation, variables)
            case _ if "Artifact" in operation:
                return self._artifact(operation, variables)
            case _:
                return {}

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """Handle a file stream request: history lines, summary and exit code."""
        run = self.runs[name]
        for file, content in body.get("files", {}).items():
            lines = [json.loads(line) for line in content["content"]] if file.endswith(".jsonl") else []
            if file == "wandb-history.jsonl":
                # A late request of a killed client must not remove what its successor has sent.
                start = content["offset"]
                run.history[start : start + len(lines)] = lines
            elif file == "wandb-summary.json":
                run.summary = json.loads(content["content"][-1])
        if body.get("complete"):
            run.exit_code = body.get("exitcode")

    def _artifact(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Handle artifacts, including tables: naming, uploading files and a manifest, committing."""
        match operation:
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "CreateArtifact":
                wanted = variables["input"]
                artifact = StoredArtifact(wanted["artifactCollectionName"], wanted["artifactTypeName"])
                self.artifacts.append(artifact)
                sequence = {"latestArtifact": None}
                new = {"id": str(len(self.artifacts) - 1), "state": "PENDING", "artifactSequence": sequence}
                return {"createArtifact": {"artifact": new}}
            case "CreateArtifactManifest":
                where = self._artifact_url(variables["artifactID"], "manifest")
                manifest = {"id": variables["artifactID"], "file": where}
                return {"createArtifactManifest": {"artifactManifest": manifest}}
            case "UpdateArtifactManifest":
                where = self._artifact_url(variables["artifactManifestID"], "manifest")
                manifest = {"id": variables["artifactManifestID"], "file": where}
                return {"updateArtifactManifest": {"artifactManifest": manifest}}
            case "CreateArtifactFiles":
                files = variables["input"]["artifactFiles"]
                nodes = [
                    self._artifact_url(item["artifactID"], item["name"])
                    | {"storagePath": item["name"], "uploadMultipartUrls": None, "artifact": {"id": item["artifactID"]}}
                    for item in files
                ]
                return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
            case "CommitArtifact":
                self.artifacts[int(variables["artifactID"])].committed = True
                return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}
            case _:
                return {}

    def _artifact_url(self, number: str, file: str) -> dict[str, Any]:
        return {"uploadUrl": f"{self.url}/artifact/{number}/{file}", "uploadHeaders": []}

    def _sweep(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """A sweep of one trial: the agent is told to start `trial`, and to exit when nothing is running."""
        match operation:
            case "UpsertSweep":
                self.sweep = variables["config"]
                project = {"id": "p1", "name": variables["projectName"], "entity": {"id": "e1", "name": ENTITY}}
                return {"upsertSweep": {"sweep": {"name": SWEEP, "project": project}, "configValidationWarnings": []}}
            case "SweepWithRuns":
                sweep = {"id": "s1", "name": SWEEP, "config": self.sweep, "runs": {"edges": []}}
                return {"project": {"sweep": sweep}}
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": "agent1"}}}
            case _:
                running = json.loads(variables["runState"])
                commands = [self.trial] if self.trial else [] if running else [{"type": "exit"}]
                self.trial = {}
                return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps(commands)}}

    def _resume_status(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        bucket = {
            "id": run.name,
            "name": run.name,
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.properties.get("displayName"),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": json.dumps([]),
            "config": json.dumps(run.config),
            "tags": run.properties.get("tags"),
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"id": "p1", "name": run.project, "entity": {"id": "e1", "name": ENTITY}, "bucket": bucket}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or variables["id"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, StoredRun(name, variables.get("project") or "uncategorized"))
        run.upserts += 1
        run.properties |= {key: value for key, value in variables.items() if value is not None}
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        project = {"id": "p1", "name": run.project, "entity": {"id": "e1", "name": ENTITY}}
        bucket = {
            "id": run.name,
            "name": run.name,
            "displayName": run.properties.get("displayName") or run.name,
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run.history),
        }
        return {"bucket": bucket, "inserted": inserted}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        content = self._body()
        with self.server.lock:
            if self.path.endswith("/graphql"):
                body = json.loads(content)
                self._answer({"data": self.server.graphql(body["query"], body.get("variables") or {})})
            elif self.path.endswith("/file_stream"):
                self.server.requests.append("file_stream")
                self.server.stream(self.path.split("/")[-2], json.loads(content))
                self._answer({"limits": {}})
            else:  # ignore telemetry
                self._answer({})

    def do_PUT(self) -> None:
        _, _, name, file = self.path.split("?")[0].split("/", 3)
        content = self._body()
        with self.server.lock:
            if self.path.startswith("/artifact/"):
                self.server.artifacts[int(name)].files[file] = content
            else:
                self.server.runs[name].files[file] = content
        self._answer({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.hang:
            while self.server.hang:
                time.sleep(0.1)
            # Otherwise, the rows accepted before it died would depend on timing.
            raise ConnectionAbortedError("what a server has taken while it hangs is lost")
        return body

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, value: dict[str, Any]) -> None:
        while self.server.hang:
            time.sleep(0.1)
        allowed = not self.server.refuse_key or "Authorization" not in self.headers
        content = json.dumps(value if allowed else {"errors": [{"message": "user is not logged in"}]}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing; the tests read `server.requests`."""


@contextmanager
def wandb_server(port: int = 0) -> Iterator[WandbServer]:
    """A running server for a `with` block."""
    server = WandbServer(port)
    try:
        yield server
    finally:
        server.hang = False
        server.stop()
