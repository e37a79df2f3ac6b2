"""The example of docs/gateway.md runs as it stands."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT
from tests.serving.gateway.running import Running


def test_the_example_runs(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/gateway.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "http://127.0.0.1:8080" in example
    exec(example.replace("http://127.0.0.1:8080", running.url), {})  # noqa: S102 - our own page
    said = capsys.readouterr().out
    assert said.startswith("['minilm', 'smollm2']") and "384" in said
