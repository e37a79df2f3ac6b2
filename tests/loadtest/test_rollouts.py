"""The page of a rollout."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.canary.guards import Answered, Guard, Judge
from deploy.canary.rollout import Rollout
from deploy.canary.split import Split
from loadtest import rollouts
from shoal.cli.rollout import rows_of
from shoal.errors import ShoalError


def _made(number: int) -> Rollout:
    judge = Judge([Guard.parse("errors"), Guard.parse("p99"), Guard.parse("agreement>=0.9")])
    history = []
    for place in range(number):
        judge.add(Answered(place % 2 == 0, place % 90 == 0, 0.01 + place / 10_000))
        judge.compare(agree=place % 50 > 0)
        history.append({"requests": place + 1, "evidence": [row["evidence"] for row in judge.rows()]})
    split = Split("abc", "a<b>", 0.3, "", 0.3)
    return Rollout(split, "a<b>", 3, 2, 60.0, judge, phase="inconclusive", reason="<why>", history=history)


def _written(rollout: Rollout, file: Path) -> str:
    curves = (rollout.judge.old.times.curve(), rollout.judge.new.times.curve())
    rollouts.write(rollout.to_dict(), curves, rows_of(rollout), file)
    return file.read_text()


def test_a_page_has_pictures_and_the_guards(tmp_path: Path) -> None:
    html = _written(_made(300), tmp_path / "reports" / "a.html")
    assert html.count("<svg") == 2
    assert "How long requests took" in html and "How near each guard came" in html
    assert "p99&lt;=1.25x" in html and "6</b><span>of 300 answers differ" in html
    assert "mathdefault" not in html  # the ticks of a logarithmic axis, as TeX
    assert "a&lt;b&gt; 3: inconclusive" in html and "&lt;why&gt;" in html and "<why>" not in html
    assert "<script" not in html and "<link" not in html and "<img" not in html


def test_a_page_without_a_request(tmp_path: Path) -> None:
    html = _written(_made(0), tmp_path / "a.html")
    assert "<svg" not in html and "agreement&gt;=0.9" in html


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShoalError, match="cannot be written"):
        _written(_made(10), tmp_path / "file" / "a.html")
