"""The real client of the Hugging Face hub against a small server that speaks the hub's protocol on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.utils import _http

import sve_cli
from sve_cli import cli
from sve_cli.certified import verify
from sve_cli.errors import SveError
from sve_cli.workflows import push as hub
from sve_cli.workflows.session import Silent

Make = Callable[..., Any]
TOKEN = "hf_dummy"


class Repository:
    """Files of the newest commit, and what the hub knows about them."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.files: dict[str, bytes] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.large: set[str] = set()
        self.commits = 1

    @property
    def sha(self) -> str:
        return hashlib.sha1(str((self.commits, sorted(self.files))).encode()).hexdigest()


class LocalHub(ThreadingHTTPServer):
    """Repositories of the user `me` in memory.

    Attributes:
        fault: what goes wrong: "store" (large objects are refused), "transfer" or "commit" (the line is cut there), "batch".
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.fault = ""
        self.log: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        self.server.log.append(format % arguments)

    def say(self, status: int, document: object = None, headers: dict[str, str] | None = None, body: bytes | None = None) -> None:
        raw = json.dumps(document).encode() if body is None else body
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def cut(self) -> None:
        """No answer, and no more of the request is read."""
        self.close_connection = True

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/lfs/") and self.command == "PUT":  # a storage address holds its own signature
            return self.store(path)
        given = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.say(401, {"error": "Invalid username or password."}, {"X-Error-Message": "Invalid username or password."})
        for pattern, answer in (
            ("/api/whoami-v2", lambda: self.say(200, {"type": "user", "name": "me", "orgs": []})),
            ("/api/validate-yaml", lambda: self.say(200, {"errors": [], "warnings": []})),
            ("/api/repos/create", lambda: self.create(json.loads(given))),
        ):
            if path == pattern:
                return answer()
        parts = path.strip("/").split("/")
        start = 2 if parts[:2] == ["api", "models"] else 0
        name = "/".join(parts[start : start + 2]).removesuffix(".git")
        repository = self.server.repositories.get(name)
        if repository is None:
            return self.say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return self.of_repository(repository, name, parts[start + 2 :], given)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def of_repository(self, repository: Repository, name: str, rest: list[str], given: bytes) -> None:
        files = repository.files
        match rest:
            case [] | ["revision", _]:
                siblings = [{"rfilename": path} for path in files]
                self.say(200, {"id": name, "sha": repository.sha, "private": repository.private, "siblings": siblings})
            case ["tree", _]:
                self.say(200, [self.entry(repository, path) for path in sorted(files)])
            case ["preupload", _]:
                asked = json.loads(given)["files"]
                modes = [{"path": f["path"], "uploadMode": self.mode(f["path"]), "shouldIgnore": False} for f in asked]
                self.say(200, {"files": modes})
            case ["info", "lfs", "objects", "batch"]:
                self.batch(json.loads(given)["objects"])
            case ["commit", _]:
                self.commit(repository, name, [json.loads(line) for line in given.splitlines()])
            case ["resolve", _, *path]:
                content = files["/".join(path)]
                headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": repository.sha}
                self.say(200, headers=headers, body=content)
            case _:
                self.say(404, {"error": f"this server has no {rest}"})

    @staticmethod
    def mode(path: str) -> str:
        return "lfs" if path.endswith((".safetensors", ".onnx")) else "regular"

    @staticmethod
    def entry(repository: Repository, path: str) -> dict[str, Any]:
        content = repository.files[path]
        found = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if path in repository.large:
            found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return found

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization', 'me')}/{asked['name']}"
        if not name.startswith("me/"):
            why = f'You don\'t have the rights to create a model under the namespace "{name.partition("/")[0]}"'
            return self.say(403, {"error": why}, {"X-Error-Message": why})
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, Repository(asked["visibility"] == "private"))
        self.say(status, {"url": f"{self.server.url}/{name}"} | ({"error": "You already created it"} if status == 409 else {}))

    def batch(self, objects: list[dict[str, Any]]) -> None:
        answers = []
        for each in objects:
            answer: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
            if self.server.fault == "batch":
                answer["error"] = {"code": 422, "message": "Private storage limit reached"}
            elif each["oid"] not in self.server.objects:
                answer["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}
            answers.append(answer)
        self.say(200, {"transfer": "basic", "objects": answers})

    def store(self, path: str) -> None:
        if self.server.fault == "transfer":
            self.rfile.read(1000)
            return self.cut()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.fault == "store":
            return self.say(403, {"error": "Request has expired"})
        oid = path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            return self.say(400, {"error": "not what was announced"})
        self.server.objects[oid] = content
        self.say(200)

    def commit(self, repository: Repository, name: str, lines: list[dict[str, Any]]) -> None:
        if self.server.fault == "commit":
            return self.cut()
        after = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                after[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                after[value["path"]] = self.server.objects[value["oid"]]
                repository.large.add(value["path"])
            else:
                assert line["key"] == "deletedFile"
                del after[value["path"]]
        repository.files = after
        repository.commits += 1
        self.say(200, {"commitUrl": f"{self.server.url}/{name}/commit/{repository.sha}", "commitOid": repository.sha})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """The server, with this process's client pointed at it."""
    with LocalHub() as running:
        monkeypatch.setattr(hub, "hub", lambda: HfApi(endpoint=running.url, token=TOKEN))
        monkeypatch.setattr(hub, "get_token", lambda: TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # between the client's five attempts
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def adapter(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified folder that no test changes: a push only reads."""
    ((artifact, _),) = make("bert").export(tmp_path_factory.mktemp("pushed") / "out", ("adapter",))
    return Path(artifact.path)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same_files(repository: Repository, folder: Path) -> None:
    """Byte by byte, the card aside, whose code opens the repository."""
    there = {path: content for path, content in repository.files.items() if path != ".gitattributes"}
    here = contents(folder)
    assert there.keys() == here.keys()
    assert [path for path in here if there[path] != here[path]] in ([], ["README.md"])


def test_what_arrives_is_what_was_certified_and_a_second_push_updates(server: LocalHub, adapter: Path, tmp_path: Path) -> None:
    hub.require_pushable("me/x")
    assert hub.push([adapter], "me/x", Silent()) == [f"{server.url}/me/x"]
    repository = server.repositories["me/x"]
    assert repository.private and repository.commits == 2 and repository.large == {"adapter.safetensors"}
    same_files(repository, adapter)
    card: Any = ModelCard(repository.files["README.md"].decode())
    assert card.data.library_name == "sve-cli" and card.data.pipeline_tag == "text-classification"
    fetched = Path(snapshot_download("me/x", endpoint=server.url, token=TOKEN, local_dir=tmp_path / "fetched"))
    assert (fetched / ".gitattributes").is_file() and verify(fetched)["files"]  # the hub's own files aside
    repository.files["old.json"] = b"{}"
    hub.push([adapter], "me/x", Silent(), public=True)  # one that exists keeps its visibility
    assert repository.private and "old.json" not in repository.files
    same_files(repository, adapter)


@pytest.mark.parametrize(
    ("fault", "saying"),
    [
        ("store", r"this login has no right to do that there \(Request has expired\)"),
        ("transfer", r"[Dd]isconnected|reset|[Bb]roken pipe"),
        ("commit", r"[Dd]isconnected|reset"),
        ("batch", "LFS batch API returned errors"),
    ],
)
def test_a_hub_that_fails_half_way_leaves_both_sides_as_they_were(server: LocalHub, adapter: Path, fault: str, saying: str) -> None:
    before, server.fault = contents(adapter), fault
    with pytest.raises(SveError, match=saying) as caught:
        hub.push([adapter], "me/x", Silent())
    assert caught.value.exit_code == 2 and "is complete, but could not be pushed to 'me/x'" in caught.value.message
    assert "\n" not in caught.value.message and f"sve export --verify {adapter} --push me/x" in caught.value.hint
    assert contents(adapter) == before and server.repositories["me/x"].commits == 1
    server.fault = ""
    hub.push([adapter], "me/x", Silent())
    same_files(server.repositories["me/x"], adapter)


def test_what_was_not_reached_is_named_too(server: LocalHub, adapter: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(adapter, tmp_path / "second"))
    with pytest.raises(SveError, match="this login has no right to do that there.*namespace") as caught:
        hub.push([adapter, second], "other/x", Silent(), public=True)
    assert caught.value.hint.count("sve export --verify") == 2 and "--push other/x-second --public" in caught.value.hint


def test_logins_and_networks_are_looked_at_before_any_work(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub", lambda: HfApi(endpoint=server.url, token="hf_wrong"))
    with pytest.raises(SveError, match="does not accept this machine's login"):
        hub.require_pushable("me/x")
    monkeypatch.setattr(hub, "hub", lambda: HfApi(endpoint="http://127.0.0.1:9", token=TOKEN))
    with pytest.raises(SveError, match="cannot be reached") as caught:
        hub.require_pushable("me/x")
    assert "export without --push" in caught.value.hint
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SveError, match="HF_HUB_OFFLINE forbids it"):
        hub.require_pushable("me/x")


def test_a_failed_upload_is_one_json_document_too(server: LocalHub, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = ["export", "--verify", str(adapter), "--push", "me/x", "--json"]
    assert cli.run(order) == 0
    assert json.loads(capsys.readouterr().out)["pushed"] == f"{server.url}/me/x"
    server.fault = "commit"
    assert cli.run(order) == 2
    document = json.loads(capsys.readouterr().out)
    assert "is complete, but could not be pushed to 'me/x'" in document["error"]


def test_what_was_pushed_loads_by_its_name(
    server: LocalHub, adapter: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push([adapter], "me/x", Silent())
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    base = make("bert").source

    def loaded(name: str, token: str = TOKEN, offline: bool = False) -> np.ndarray:
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        opened: Any = sve_cli.load(name, base=base, device="cpu")
        logits_MNC: np.ndarray = opened.logits(["a good film", "the plot was slow"])
        return logits_MNC

    refused: list[dict[str, Any]] = [{"offline": True}, {"token": "hf_wrong"}]  # not fetched before, or not allowed to
    for settings in refused:
        with pytest.raises(SveError, match="There is no folder 'me/x', and the hub gave none") as caught:
            loaded("me/x", **settings)
        assert "\n" not in caught.value.message
    fetched = loaded("me/x")
    assert any("/resolve/" in line and "adapter.safetensors" in line for line in server.log)
    np.testing.assert_array_equal(loaded("me/x", offline=True), fetched)
    np.testing.assert_array_equal(loaded(str(adapter)), fetched)


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is patched: the client finds the hub, the login and its settings in the environment."""
    run = tmp_path / "run"
    monkeypatch.setenv("SVE_CACHE_DIR", str(tmp_path / "cache"))
    tiny = ("train.epochs=1", "data.limit=96", "method.members=2", "evaluate.bootstrap=0")
    assert cli.run(["train", "quickstart", "--out", str(run), *tiny]) == 0
    with LocalHub() as server:
        settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

        def sve(*arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
            environment = {**os.environ, **settings, "HF_TOKEN": token, "PYTHONPATH": os.pathsep.join(sys.path)}
            order = [sys.executable, "-m", "sve_cli.cli", "export", str(run), *arguments]
            return subprocess.run(order, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

        order = ("--to", "merged,adapter", "--push", "me/x", "--json")
        refused = sve(*order, token="hf_wrong")
        assert refused.returncode == 2 and not (run / "exports").exists()
        assert "does not accept this machine's login" in json.loads(refused.stdout)["error"]
        done = sve(*order)
        assert done.returncode == 0, done.stderr
        names = ("member-0", "member-1", "adapter")
        assert [each["pushed"] for each in json.loads(done.stdout)] == [f"{server.url}/me/x-{name}" for name in names]
        for name in names:
            repository = server.repositories[f"me/x-{name}"]
            same_files(repository, run / "exports" / name)
            card: Any = ModelCard(repository.files["README.md"].decode()).data
            assert {e.metric_type for e in card.eval_results} >= {"accuracy", "nll"} and repository.private
            assert card.pipeline_tag == "image-classification"
        server.shutdown()
