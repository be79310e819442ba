"""`sve init ci`: the workflow parses, asks for little, and its commands do what they should."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sve_cli import cli
from sve_cli.gate import load_gates
from sve_cli.workflows import init_ci
from sve_cli.workflows.init_ci import BASELINE, installed_from

WORKFLOW = Path(".github/workflows/calibration.yml")
TINY = (
    "model: {name: digits_vit}\ndata: {name: digits, limit: 40}\ntask: {name: image_classification, head: new}\n"
    "method: {name: sve, members: 2}\ntrain: {epochs: 1, batch_size: 20, precision: float32}\nevaluate: {bootstrap: 50}\n"
)
# Hands a command to this process: importing torch for each would take seconds.
SHIM = """#!/bin/sh
call=$(mktemp -d "$BRIDGE/XXXXXX")
printf '%s\\n' "$@" > "$call/arguments"
touch "$call/ready"
while [ ! -e "$call/code" ]; do sleep 0.02; done
cat "$call/err" >&2
cat "$call/out"
exit "$(cat "$call/code")"
"""


class Runner:
    """A machine that runs the steps of a job: bash is real, `sve` is this process, `gh` writes down what it was told."""

    def __init__(self, sve: Any, folder: Path, environment: dict[str, str]) -> None:
        self.sve, self.bridge = sve, folder / "bridge"
        tools = folder / "tools"
        for path in (self.bridge, tools):
            path.mkdir(parents=True)
        for name, text in (("sve", SHIM), ("gh", '#!/bin/sh\nprintf "%s\\n" "$@" > "$BRIDGE/gh"\n')):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self.summary, self.output = folder / "summary.md", folder / "output"
        self.environment = {
            **os.environ, **environment, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "BRIDGE": str(self.bridge),
            "GITHUB_STEP_SUMMARY": str(self.summary), "GITHUB_OUTPUT": str(self.output), "GITHUB_RUN_ID": "77",
            "GITHUB_REF_NAME": "main",
        }  # fmt: skip

    def run(self, script: str) -> int:
        """As GitHub runs a step: bash -e."""
        process = subprocess.Popen(["bash", "-eo", "pipefail", "-c", script], env=self.environment, stderr=subprocess.PIPE)
        while process.poll() is None:
            for ready in self.bridge.glob("*/ready"):
                ready.unlink()
                self.sve.capsys.readouterr()
                code = cli.run((ready.parent / "arguments").read_text().splitlines())
                out, err = self.sve.capsys.readouterr()
                (ready.parent / "out").write_text(out)
                (ready.parent / "err").write_text(err)
                (ready.parent / ".code").write_text(str(code))
                (ready.parent / ".code").rename(ready.parent / "code")
            time.sleep(0.01)
        self.err = process.communicate()[1].decode()
        return process.returncode


def scripts(job: dict[str, Any]) -> dict[str, str]:
    """The commands of a job's steps by their names, but for the installation."""
    return {step["name"]: step["run"] for step in job["steps"] if "run" in step and step["name"] != "Install"}


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not shutil.which("bash") or not shutil.which("git"), reason="The workflow's commands need bash and git.")
@pytest.mark.slow
def test_the_commands_of_the_workflow(sve: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    git("init", "-q", "--bare", str(tmp_path / "origin.git"))
    git("init", "-q", "-b", "main")
    git("remote", "add", "origin", str(tmp_path / "origin.git"))
    sve("init", "ci", "--recipe", "tiny.yaml")
    document = yaml.safe_load(WORKFLOW.read_text())
    environment = {name: str(value) for name, value in document["env"].items() if name != "SVE_CACHE_DIR"}
    runner = Runner(sve, tmp_path_factory.mktemp("runner"), environment)
    gate, update = (scripts(document["jobs"][name]) for name in ("gate", "update-baseline"))
    assert list(gate) == ["Key of the factors", "Train and evaluate", "Gate"]
    for name, script in gate.items():
        assert runner.run(script) == 0, (name, runner.err)
    assert re.fullmatch("key=[0-9a-f]{64}\n", runner.output.read_text())
    assert "was not compared" in runner.summary.read_text() and "passed" in runner.summary.read_text()
    assert Path("gate.xml").read_text().count("<skipped") == 3, "no baseline yet: the policy is to warn"

    assert {name: script for name, script in update.items() if name in gate} == {n: s for n, s in gate.items() if n != "Gate"}
    for name in ("Make the baseline", "Open a pull request with it"):
        assert runner.run(update[name]) == 0, (name, runner.err)
    told = (runner.bridge / "gh").read_text().splitlines()
    assert told[:2] == ["pr", "create"] and told[told.index("--head") + 1] == "calibration-baseline-77"
    assert git("--git-dir", "origin.git", "ls-tree", "--name-only", "calibration-baseline-77").split() == [BASELINE]

    assert runner.run(gate["Gate"]) == 0 and "<skipped" not in Path("gate.xml").read_text()
    assert runner.run(update["Open a pull request with it"]) == 0, "nothing new to commit"
    Path("gates.yaml").write_text(Path("gates.yaml").read_text() + "  brier: {limit: 0.0001}\n")
    assert runner.run(gate["Gate"]) == 3 and "<failure" in Path("gate.xml").read_text()


@pytest.mark.parametrize("arguments", [(), ("--predictions", "out/preds.csv")])
def test_the_files(sve: Any, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    sve("init", "ci", *arguments, "--out", "repository")
    text = (tmp_path / "repository" / WORKFLOW).read_text()
    document = yaml.safe_load(text)
    assert document["permissions"] == {"contents": "read"} and set(document["jobs"]) == {"gate", "update-baseline"}
    assert "permissions" not in document["jobs"]["gate"]
    assert document["jobs"]["update-baseline"]["permissions"] == {"contents": "write", "pull-requests": "write"}
    steps = [step for job in document["jobs"].values() for step in job["steps"]]
    for step in steps:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/x@v1"))
        assert "${{" not in step.get("run", ""), "what GitHub puts into a script can be an attack"
    assert "@package@" not in text and "# [" not in text and ("train" in text) == (not arguments)
    assert any("SVE_PACKAGE" in step.get("run", "") for step in steps) and document["env"]["SVE_PACKAGE"] == installed_from()[0]
    gates = load_gates(tmp_path / "repository" / "gates.yaml")
    assert gates.settings.baseline == BASELINE and list(gates.gates) == ["accuracy", "nll", "ece_top1_w15"]


def test_what_is_refused(sve: Any, tmp_path: Path) -> None:
    (tmp_path / "gates.yaml").write_text("mine")
    sve.check_refuses("init", "ci", saying="'gates.yaml' exists already; nothing was written")
    assert not (tmp_path / ".github").exists() and (tmp_path / "gates.yaml").read_text() == "mine"
    (tmp_path / "wrong.yaml").write_text("model: {nam: x}\n")
    (tmp_path / "${{ x }}.yaml").write_text(TINY)
    for arguments, saying in (
        (("--recipe", "none.yaml"), "There is no recipe 'none.yaml'"),
        (("--recipe", "wrong.yaml"), "model.nam: unknown key"),
        (("--recipe", str(tmp_path / "tiny.yaml")), "must lie in the repository"),
        (("--recipe", "../tiny.yaml"), "must lie in the repository"),
        (("--recipe", "${{ x }}.yaml"), "cannot stand in a workflow"),
        (("--predictions", "p.txt"), "is no predictions file"),
        (("--predictions", "p.csv", "--recipe", "quickstart"), "Name one of them"),
        (("--package", "a\nb"), "cannot stand in a workflow"),
    ):
        sve.check_refuses("init", "ci", "--out", "." if "tiny" in arguments[-1] or "yaml" in arguments[-1] else "r", *arguments,
                          saying=saying)  # fmt: skip
    (tmp_path / "bins.yaml").write_text(TINY.replace("bootstrap: 50", "bins: 20"))
    (tmp_path / "gates.yaml").unlink()
    sve("init", "ci", "--recipe", "bins.yaml")
    assert "ece_top1_w20" in load_gates(tmp_path / "gates.yaml").gates


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (None, ("sve-cli==", True)),
        ({"url": "file:///home/me/sve", "dir_info": {"editable": True}}, ("sve-cli==", False)),
        ({"url": "file:///tmp/sve.whl", "archive_info": {}}, ("sve-cli==", False)),
        ({"url": "https://x.org/sve.whl", "archive_info": {}}, ("sve-cli @ https://x.org/sve.whl", True)),
        (
            {"url": "https://x.org/sve", "vcs_info": {"vcs": "git", "commit_id": "ab12"}},
            ("sve-cli @ git+https://x.org/sve@ab12", True),
        ),
    ],
)
def test_a_build_installs_what_is_installed_here(
    sve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: dict[str, Any] | None, expected: tuple[str, bool]
) -> None:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            return None if recorded is None else json.dumps({"direct_url.json": recorded}[name])

    monkeypatch.setattr(init_ci, "distribution", lambda name: Distribution())
    sve("init", "ci", "--out", "repository")
    package = yaml.safe_load((tmp_path / "repository" / WORKFLOW).read_text())["env"]["SVE_PACKAGE"]
    assert package.startswith(expected[0]) and ("see --package" in sve.err) == (not expected[1])
