"""When requests are due, what they ask, and what was promised; without a server."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from loadtest import arrivals, slo, workloads
from loadtest.samples import Samples
from shoal.errors import UsageError


def test_poisson_arrivals_have_the_rate_and_exponential_pauses() -> None:
    due = arrivals.due_times("poisson", 200.0, 50.0)
    assert len(due) == 10_000
    pauses = np.diff(due)
    assert (pauses >= 0).all() and due[-1] < 50.0
    assert pauses.std() == pytest.approx(pauses.mean(), rel=0.05)  # as an exponential distribution has it
    assert np.array_equal(due, arrivals.due_times("poisson", 200.0, 50.0))
    assert not np.array_equal(due[:100], arrivals.due_times("poisson", 200.0, 50.0, seed=1)[:100])


def test_constant_arrivals() -> None:
    assert arrivals.due_times("constant", 4.0, 1.0).tolist() == [0.0, 0.25, 0.5, 0.75]
    assert arrivals.due_times("constant", 0.01, 1.0).tolist() == [0.0]  # one request at least


def test_a_trace_begins_at_zero_and_is_stretched_to_a_rate(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at": 10.0}\n\n{"at": 10.5, "text": "x"}\n{"at": 12}\n')
    assert arrivals.due_times(str(trace), None, 60.0).tolist() == [0.0, 0.5, 2.0]
    assert arrivals.due_times(str(trace), 2.0, 60.0).tolist() == [0.0, 0.25, 1.0]
    assert arrivals.due_times(str(trace), None, 1.0).tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    "line", ["{}", "[]", "null", '{"at": "soon"}', '{"at": NaN}', '{"at": 1', '{"at": null}']
)
def test_a_line_of_a_trace_without_a_time_is_named(tmp_path: Path, line: str) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at": 0}\n' + line + "\n")
    with pytest.raises(UsageError, match="line 2 of"):
        arrivals.due_times(str(trace), None, 10.0)


def test_arrivals_that_cannot_be(tmp_path: Path) -> None:
    unordered = tmp_path / "unordered.jsonl"
    unordered.write_text('{"at": 1}\n{"at": 0}\n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe")
    for arrival, rate, said in (
        ("poisson", None, "needs a rate"),
        ("poisson", 0.0, "is no rate"),
        ("constant", -1.0, "is no rate"),
        ("poisson", math.nan, "is no rate"),
        ("poisson", math.inf, "is no rate"),
        ("poisson", 1e9, "too many"),
        ("possion", 5.0, "cannot be read"),
        (str(unordered), None, "not in order"),
        (str(empty), None, "no request"),
        (str(binary), None, "cannot be read"),
    ):
        with pytest.raises(UsageError, match=said):
            arrivals.due_times(arrival, rate, 10.0)


@pytest.mark.parametrize("name", workloads.NAMES)
@pytest.mark.parametrize("generates", [True, False])
def test_named_workloads_are_the_same_each_time_and_valid_as_a_file(
    tmp_path: Path, name: str, generates: bool
) -> None:
    if name == "chat" and not generates:
        with pytest.raises(UsageError, match="chat is for models that generate text"):
            workloads.requests(name, generates=False)
        return
    made = workloads.requests(name, generates=generates)
    assert made == workloads.requests(name, generates=generates)
    assert made != workloads.requests(name, generates=generates, seed=1)
    assert len(made) == workloads.REQUESTS
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(json.dumps(request) for request in made))
    assert workloads.requests(str(file), generates=generates) == made


def test_what_the_workloads_hold() -> None:
    chat = workloads.requests("", generates=True)
    assert {request["messages"][0]["content"] for request in chat} == {chat[0]["messages"][0]["content"]}
    assert [len(request["messages"]) for request in chat[:5]] == [2, 4, 6, 8, 2]
    assert chat[1]["messages"][:2] == chat[0]["messages"]  # a turn goes on from the one before
    mixed = [len(r["messages"][0]["content"].split()) for r in workloads.requests("mixed", generates=True)]
    assert 500 < np.median(mixed) < 660 and max(mixed) == 800
    answers = [request["max_tokens"] for request in workloads.requests("mixed", generates=True)]
    assert 115 < np.median(answers) < 145 and max(answers) == 400
    texts = [len(request["text"].split()) for request in workloads.requests("", generates=False)]
    assert 10 < np.median(texts) < 14 and max(texts) > 40
    assert {len(r["texts"]) for r in workloads.requests("batch", generates=False)} == {32}


@pytest.mark.parametrize(
    ("line", "generates", "said"),
    [
        ("{", False, "line 1 of"),
        ("[]", False, "no JSON object"),
        ("{}", False, "nothing to ask"),
        ('{"text": 5}', False, "text is no str"),
        ('{"texts": []}', False, "no list of texts"),
        ('{"texts": ["a", 5]}', False, "no list of texts"),
        ('{"inputs": []}', False, "inputs is no dict"),
        ('{"text": "a", "texts": ["b"]}', False, "text and texts to ask"),
        ('{"prompt": "a"}', False, "'prompt' is none of"),
        ('{"text": "a"}', True, "'text' is none of"),
        ('{"prompt": "a", "max_tokens": 0}', True, "no number of tokens"),
        ('{"prompt": "a", "max_tokens": true}', True, "no number of tokens"),
        ('{"messages": "a"}', True, "messages is no list"),
        ("[" * 100_000, True, "line 1 of"),
    ],
)
def test_lines_that_are_no_requests(tmp_path: Path, line: str, generates: bool, said: str) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(UsageError, match=said):
        workloads.requests(str(file), generates=generates)


def test_files_without_requests(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no workload"):
        workloads.requests("mixd", generates=False)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="holds no request"):
        workloads.requests(str(tmp_path / "empty"), generates=False)


def test_promises() -> None:
    assert slo.parse("p99=80ms") == (slo.Bound("latency", 99.0, 80.0),)
    bounds = slo.parse("ttft_p95=0.5s, itl_p99.9=60ms,latency_p50=2s")
    assert [str(bound) for bound in bounds] == ["ttft_p95=500ms", "itl_p99.9=60ms", "p50=2000ms"]
    for wrong in (
        "",
        "p99",
        "p99=80",
        "p0=1ms",
        "p100=1ms",
        "99=80ms",
        "p99=0ms",
        "p99=-1ms",
        "p99=80ms,",
        "x_p5=1s",
    ):
        with pytest.raises(UsageError, match="no promise"):
            slo.parse(wrong)


def _samples(
    latency: list[float], failed: set[int] = frozenset(), between: list[float] | None = None
) -> Samples:  # type: ignore[assignment]
    return Samples.from_rows(
        [
            (
                100.0 + n,
                "grpc",
                value,
                "Timeout: late" if n in failed else "",
                8,
                n,
                0.1,
                value / 2 if between else None,
                between[n] if between else None,
                5,
            )
            for n, value in enumerate(latency)
        ]
    )


def test_goodput_by_hand() -> None:
    metrics = _samples([10.0, 20.0, 30.0, 40.0]).metrics(generates=False)
    judged = slo.judged(slo.parse("p50=20ms,p99=35ms"), metrics)
    # Half of the requests are within 20 ms; 99 % of four are all four. Within both bounds: 10 and 20.
    assert [(row["holds"], row["reached"]) for row in judged["bounds"]] == [(True, 20.0), (False, 40.0)]
    assert judged["goodput"] == 0.5 and not judged["met"]
    assert slo.judged(slo.parse("p75=30ms,p99=40ms"), metrics)["met"]


def test_a_request_that_failed_is_within_no_promise() -> None:
    metrics = _samples([10.0] * 99 + [1.0], failed={99}).metrics(generates=False)
    judged = slo.judged(slo.parse("p99.5=80ms"), metrics)
    assert not judged["met"] and judged["bounds"][0]["reached"] is None
    assert judged["goodput"] == pytest.approx(0.99)
    assert slo.judged(slo.parse("p90=80ms"), metrics)["met"]


def test_one_token_has_no_time_between_tokens() -> None:
    metrics = _samples([10.0, 20.0], between=[None, 5.0]).metrics(generates=True)  # type: ignore[list-item]
    judged = slo.judged(slo.parse("itl_p99=5ms,ttft_p99=10ms"), metrics)
    assert judged["met"] and judged["goodput"] == 1.0


def test_a_promise_that_a_test_cannot_tell() -> None:
    with pytest.raises(UsageError, match="ttft_p95=1ms is about tokens, and this model gives none"):
        slo.check(slo.parse("ttft_p95=1ms"), generates=False, seconds=None)
    with pytest.raises(UsageError, match="a test of 9 s cannot tell whether p99=2000ms holds"):
        slo.check(slo.parse("p99=2s"), generates=False, seconds=9)
    slo.check(slo.parse("p99=2s,itl_p99=60s"), generates=True, seconds=10)
    slo.check(slo.parse("p99=2s"), generates=False, seconds=None)  # in a closed loop nothing heaps up
    assert slo.least_requests(slo.parse("p95=1s,ttft_p99.5=1s")) == 200


def test_all_requests_of_a_decoder_failed() -> None:
    metrics = _samples([10.0, 20.0], failed={0, 1}).metrics(generates=True)
    assert not slo.judged(slo.parse("ttft_p95=1s,itl_p95=1s"), metrics)["met"]


def _served(rate: float, capacity: float, seconds: float) -> Samples:
    """Requests at equal distances, to a server that answers one after the other."""
    free, rows = 0.0, []
    for n in range(int(rate * seconds)):
        due = n / rate
        free = max(free, due) + 1 / capacity
        rows.append((1000 + free, "grpc", 1e3 * (free - due), "", 1, n, 0.0, None, None, None))
    return Samples.from_rows(rows)


def test_a_server_that_is_asked_for_more_than_it_can_is_not_steady() -> None:
    assert _served(18.0, 20.0, 10).steady(10)
    assert not _served(30.0, 20.0, 10).steady(10)
    overloaded = _served(60.0, 20.0, 10)
    judged = slo.judged(
        slo.parse("p95=60s"), overloaded.metrics(generates=False), steady=overloaded.steady(10)
    )
    assert judged["goodput"] == 1.0 and not judged["met"]  # all in time, and yet it cannot go on so


def test_a_rate_is_that_of_the_whole_test() -> None:
    few = _served(0.2, 20.0, 20)
    assert few.summary(20.0)["total"]["per_second"] == pytest.approx(0.2)
