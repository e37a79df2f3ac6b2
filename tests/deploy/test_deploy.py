"""The compose files and Dockerfiles, as far as can be told without an engine; `tests/compose` runs them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.cli import initial_export
from shoal.manifest import manifests

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
FILES = ("docker-compose.yml", "deploy/compose.tls.yml", "deploy/compose.gpu.yml")


def _compose(name: str = FILES[0]) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / name).read_text()))


SERVICES = _compose()["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_closed(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service.get("ports", []))
    environment = service.get("environment", {})
    assert not [key for key in environment if re.search(r"(?i)password|secret|token|key$", key)]


def test_metrics_are_not_published() -> None:
    published = [port.rsplit(":", 1)[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert not {"8002", "8003", "9464"}.intersection(published)


def test_the_server_cannot_change_what_it_serves() -> None:
    triton = SERVICES["triton"]
    assert "${MODELS:-models}:/models:ro" in triton["volumes"]
    assert {"cpus", "mem_limit", "pids_limit", "shm_size", "stop_grace_period"} <= triton.keys()
    assert any(part.startswith("--admin-key=") for part in triton["command"])


@pytest.mark.parametrize("name", FILES[1:])
def test_an_overlay_says_all_that_the_base_says(name: str) -> None:
    """A `command` replaces the other whole."""
    for service, over in _compose(name)["services"].items():
        if service in SERVICES:
            assert set(SERVICES[service]["command"]) <= set(over["command"])


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_a_dockerfile_copies_what_there_is(name: str) -> None:
    text = (DEPLOY / name).read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    assert copied and all((ROOT / part).exists() for names in copied for part in names.split())
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} - {"tests"}
    assert packages <= {part for names in copied for part in names.split()}
    assert "USER 1000:1000" in text


def test_the_gpu_image_pins_what_the_project_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = {*project["dependencies"]}.union(*project["optional-dependencies"].values())
    stated = {requirement.partition(";")[0].strip() for requirement in stated}
    text = (DEPLOY / "Dockerfile.gpu").read_text()
    (packages,) = re.findall(r'^ARG PACKAGES="(.+)"$', text, re.MULTILINE)
    assert set(packages.split()) <= stated


@pytest.mark.skipif(
    shutil.which("docker-compose") is None and shutil.which("docker") is None, reason="no docker compose here"
)
@pytest.mark.parametrize("over", [None, *FILES[1:]])
def test_compose_itself_takes_the_files(over: str | None) -> None:
    plugin = (
        subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    )
    if not plugin and shutil.which("docker-compose") is None:
        pytest.skip("docker has no compose here")
    command = ["docker", "compose"] if plugin else ["docker-compose"]
    files = ["-f", FILES[0], *(["-f", over] if over else [])]
    done = subprocess.run(
        [*command, *files, "config", "--quiet"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_certificates_come_from_one_command(tmp_path: Path) -> None:
    subprocess.run([DEPLOY / "certificates", tmp_path / "tls", "models.example.org"], check=True)
    folder = tmp_path / "tls"
    assert folder.stat().st_mode & 0o777 == 0o700
    for role in ("server/server", "client"):
        subprocess.run(
            ["openssl", "verify", "-CAfile", folder / "ca.pem", folder / f"{role}.pem"],
            check=True,
            capture_output=True,
        )
    said = subprocess.run(
        ["openssl", "x509", "-in", folder / "server/server.pem", "-noout", "-ext", "subjectAltName"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "DNS:models.example.org" in said and "IP Address:127.0.0.1" in said


def test_the_first_models_are_made_once_and_beside_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = [{"source": "example:forest", "name": name} for name in ("oak", "elm")]
    monkeypatch.setattr(initial_export, "MODELS", tuple(shipped))
    monkeypatch.setattr(sys, "argv", ["first", str(tmp_path)])
    assert initial_export.main() == 0
    kept = (tmp_path / "oak_estimator" / "1" / "manifest.json").read_bytes()
    shutil.rmtree(tmp_path / "elm_estimator")  # as if the first start had been broken off
    assert initial_export.main() == 0
    assert (tmp_path / "oak_estimator" / "1" / "manifest.json").read_bytes() == kept
    assert {manifest.model for manifest in manifests(tmp_path)} == {"oak", "elm"}
    monkeypatch.setattr(initial_export, "MODELS", ({"source": "example:forest", "name": "ash"},))
    assert initial_export.main() == 0
    assert not (tmp_path / "ash").exists()
    assert "models of your own" in capsys.readouterr().err


@pytest.mark.parametrize(
    "extras", ["export", "export-transformers5", "export,serve,tabular", "serve,monitor"]
)
def test_nothing_brings_the_wheel_for_cpus_into_the_image_for_gpus(extras: str) -> None:
    """Both wheels have the files of `onnxruntime/`, and the one that pip unpacks last would count."""
    command = [sys.executable, DEPLOY / "requirements.py", extras, "--gpu"]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in said.splitlines()}
    assert "onnxruntime-gpu" in names
    assert "onnxruntime" not in names
    for name in names:  # what is installed here says what it would bring; the builds for GPUs are not
        try:
            brought = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        plain = [
            line for line in brought if re.match(r"onnxruntime(?![\w-])", line) and "extra ==" not in line
        ]
        assert not plain, name
    brought = metadata.requires("onnxruntime-genai") or []
    assert any(line.startswith("onnxruntime>") for line in brought)  # why it has to be another build
    text = (DEPLOY / "Dockerfile.gpu").read_text()
    assert all("--gpu" in line for line in text.splitlines() if "requirements.py " in line and "RUN" in line)
