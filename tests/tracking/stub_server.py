"""A wandb server on loopback that keeps what arrives, as wandb's own does: history by run and by line number."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.tracking.servers import KEY

ENTITY = "somebody"
_UPLOAD = "/upload/"


@dataclass
class StubRun:
    """What arrived of one run."""

    upserts: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(default_factory=dict)
    exit_code: int | None = None
    is_preempting: bool = False
    lines_received: int = 0
    """Lines of the history as they came, those that came twice counted twice."""

    @property
    def line_count(self) -> int:
        return len(self.streams.get("wandb-history.jsonl", {}))

    @property
    def tail(self) -> list[str]:
        """The last line of the history, as it came."""
        lines = self.streams.get("wandb-history.jsonl", {})
        return [lines[max(lines)]] if lines else []

    @property
    def history(self) -> list[dict[str, Any]]:
        """The history by line number: a line that comes again for the same number replaces the one before."""
        lines = self.streams.get("wandb-history.jsonl", {})
        return [json.loads(lines[number]) for number in sorted(lines)]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.streams.get("wandb-summary.json", {})
        return json.loads(lines[0]) if lines else {}

    def about(self, name: str) -> Any:
        """The last value that was told of a run's ``groupName``, ``displayName``, ``tags``, ..."""
        return next((upsert[name] for upsert in reversed(self.upserts) if upsert.get(name) is not None), None)


@dataclass
class Stub:
    """A running stub.

    ``refusing``: ids of runs whose history is answered with 400; ``deleted``: ids of runs that were deleted, which
    wandb never lets anybody use again.
    """

    url: str = ""
    runs: dict[tuple[str, str], StubRun] = field(default_factory=dict)
    """By project and run id."""
    uploads: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """All that came, by path or name of the GraphQL operation."""
    refusing: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)

    @property
    def env(self) -> dict[str, str]:
        """What wandb's environment needs to come here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def run(self, run_id: str) -> StubRun:
        """Return the only run with this id."""
        (found,) = [run for (_, name), run in self.runs.items() if name == run_id]
        return found

    # -- answers -------------------------------------------------------------------------------------------------------

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        (operation,) = re.findall(r"(?:query|mutation)\s+(\w+)", query)[:1] or ["?"]
        self.requests.append(operation)
        answer = getattr(self, f"_{operation}", None)
        return answer(variables) if answer else {}

    def _ServerFeaturesQuery(self, _: Any) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _Viewer(self, _: Any) -> dict[str, Any]:
        viewer = {"id": "VXNlcjox", "entity": ENTITY, "username": ENTITY, "email": "", "admin": False, "flags": "{}"}
        return {"viewer": viewer | {"teams": {"edges": []}}}

    def _UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        project, name = variables["project"], variables["name"]
        is_new = (project, name) not in self.runs
        run = self.runs.setdefault((project, name), StubRun())
        run.upserts.append(variables)
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        bucket = {
            "id": f"id-{name}", "name": name, "displayName": variables.get("displayName") or name, "description": None,
            "config": json.dumps(run.config), "sweepName": None, "historyLineCount": run.line_count,
            "project": {"id": f"id-{project}", "name": project, "entity": {"id": "id-entity", "name": ENTITY}},
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def _RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get((variables["project"], variables["name"]))
        if run is None:
            return {
                "model": {
                    "id": "x",
                    "name": variables["project"],
                    "entity": {"id": "x", "name": ENTITY},
                    "bucket": None,
                }
            }
        bucket = {
            "id": f"id-{variables['name']}", "name": variables["name"], "summaryMetrics": json.dumps(run.summary),
            "displayName": run.about("displayName"), "logLineCount": 0, "historyLineCount": run.line_count,
            "eventsLineCount": 0, "historyTail": json.dumps(run.tail), "eventsTail": "[]",
            "config": json.dumps(run.config), "tags": run.about("tags") or [], "notes": run.about("notes"),
            "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip
        return {
            "model": {
                "id": "x",
                "name": variables["project"],
                "entity": {"id": "x", "name": ENTITY},
                "bucket": bucket,
            }
        }

    def _GetDefaultEntity(self, _: Any) -> dict[str, Any]:
        return self._Viewer(None)

    def _ArtifactType(self, _: Any) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _Run(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get((variables["project"], variables["name"]))
        if run is None:
            return {"project": {"run": None}}
        found = {
            "id": f"id-{variables['name']}", "projectId": "1", "name": variables["name"], "state": "finished",
            "historyLineCount": run.line_count, "config": json.dumps(run.config), "user": {"name": ENTITY},
            "sweepName": None,
            "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}", "tags": [], "historyKeys": None,
        }  # fmt: skip
        return {"project": {"run": found}}

    def _Runs(self, variables: dict[str, Any]) -> dict[str, Any]:
        mine = [(name, run) for (project, name), run in self.runs.items() if project == variables["project"]]
        if not mine:
            return {"project": None}
        edges = [{"node": self._node(name, run), "cursor": name} for name, run in mine]
        page = {"endCursor": mine[-1][0], "hasNextPage": False}
        found = {
            "internalId": "1",
            "runCount": len(mine),
            "readOnly": False,
            "runs": {"edges": edges, "pageInfo": page},
        }
        return {"project": found}

    def _node(self, name: str, run: StubRun) -> dict[str, Any]:
        state = {None: "running", 0: "finished", 254: "crashed"}.get(run.exit_code, "failed")
        own = {
            "id": f"id-{name}",
            "projectId": "1",
            "name": name,
            "displayName": run.about("displayName"),
            "state": state,
        }
        own |= {"config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}"}
        own |= {"group": run.about("groupName"), "jobType": "train", "tags": [], "historyLineCount": run.line_count}
        own |= {
            "createdAt": "2026-01-01T00:00:00",
            "heartbeatAt": "2026-01-01T00:00:00",
            "sweepName": None,
            "commit": None,
        }
        own |= {"description": None, "notes": None, "readOnly": False, "historyKeys": None}
        return own | {"user": {"name": ENTITY, "username": ENTITY}}

    def _RunFullHistory(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[variables["project"], variables["name"]]
        lines = run.streams.get("wandb-history.jsonl", {})
        return {"project": {"run": {"history": [lines[number] for number in sorted(lines)][: variables["samples"]]}}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": f"{self.url}{_UPLOAD}{variables['run']}/{name}"} for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, _: Any) -> dict[str, Any]:
        sequence = {"id": "sequence", "latestArtifact": None}
        artifact = {"id": "artifact", "state": "COMMITTED", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def stream(self, project: str, name: str, body: dict[str, Any]) -> None:
        run = self.runs.setdefault((project, name), StubRun())
        for file, chunk in (body.get("files") or {}).items():
            lines = run.streams.setdefault(file, {})
            if file == "wandb-history.jsonl":
                run.lines_received += len(chunk["content"])
            lines.update(enumerate(chunk["content"], chunk["offset"]))
        run.is_preempting |= bool(body.get("preempting"))
        if body.get("complete"):
            run.exit_code = body.get("exitcode")


@contextmanager
def stub_server(port: int = 0) -> Iterator[Stub]:
    """Yield a stub that listens on loopback."""
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self._body()
            if self.path == "/graphql":
                asked = json.loads(body)
                name = (asked.get("variables") or {}).get("name")
                if "UpsertBucket" in asked["query"] and name in stub.deleted:
                    told = f"run {name} was previously created and deleted; try a new run name"
                    self._answer(409, {"errors": [{"message": told}]})
                    return
                self._answer(200, {"data": stub.graphql(asked["query"], asked.get("variables") or {})})
                return
            stub.requests.append(self.path)
            stream = re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", self.path)
            if stream and stream[2] in stub.refusing:
                self._answer(400, {"error": "refused"})
                return
            if stream:
                stub.stream(*stream.groups(), json.loads(body))
            self._answer(200, {})

        def do_PUT(self):
            stub.uploads[self.path.removeprefix(_UPLOAD)] = self._body()
            self._answer(200, {})

        def do_GET(self):
            stub.requests.append(self.path)
            self._answer(200, {})

        def _body(self) -> bytes:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        def _answer(self, code: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_):
            """Say nothing of clients that leave without a word."""

    http = Server(("127.0.0.1", port), Handler)
    http.daemon_threads = True
    stub.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield stub
    finally:
        http.shutdown()
        http.server_close()
