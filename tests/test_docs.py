"""What the documents say is true: commands exist, Python runs, links lead somewhere, YAML is valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from serving.embedded import Server
from shoal.cli.app import app
from tests.conftest import ROOT

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")], key=str)


def _blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def _lines(program: str) -> list[tuple[str, list[str]]]:
    """Every line of a `sh` block that starts with a program: (document, its words)."""
    found = []
    for document in DOCUMENTS:
        for block in _blocks(document, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == program:
                    found.append((document.name, words[1:]))
    return found


@pytest.mark.parametrize(("document", "words"), _lines("shoal"), ids=lambda v: " ".join(v) if v else "")
def test_shoal_commands_parse(document: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    command.make_context(words[0], list(words[1:]), resilient_parsing=False)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets |= set((ROOT / "Makefile").read_text().split(".PHONY:")[1].splitlines()[0].split())
    asked = {words[0] for _, words in _lines("make")}
    for document in DOCUMENTS:
        asked |= set(re.findall(r"`make ([a-z0-9-]+)`", document.read_text()))
    assert asked >= {"demo", "test", "bench"}
    assert asked <= targets


def test_ci_runs_the_readmes_test_command() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    assert "\nmake test " in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def test_no_figure_is_missing() -> None:
    for document in DOCUMENTS:
        assert not re.search(
            r"BENCH_[A-Z]+|DEMO_OUTPUT|TEST_LINE|TODO|DATE_AND_MACHINE", document.read_text()
        ), document


def test_the_readmes_python_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    code = _blocks(ROOT / "README.md", "python")[0].replace("127.0.0.1:8001", server.grpc)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - our own README
    assert names["vectors"].shape == (2, 384)
    assert "text 0 is empty" in capsys.readouterr().out
