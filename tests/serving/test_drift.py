"""What drifts is seen, what does not is not, and serving does not notice that it is watched."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, generate_latest
from scipy.spatial.distance import jensenshannon
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from clients import GrpcClient
from export.checkpoint.source import find_checkpoint
from export.encoder.prepare import prepare
from export.encoder.recipe import EncoderRecipe
from export.encoder.reference import reference_rows, take_reference
from export.run import export
from loadtest import bench_drift
from serving.drift.monitor import Monitor, Watched, Window, asks, bound, watched_in
from serving.drift.sampler import MOST_TOKENS, TrafficSampler
from serving.drift.statistics import (
    Histogram,
    ReferenceStatistics,
    Vocabulary,
    answer_features,
    distance,
    noise,
)
from serving.embedded import Server, running
from shoal import corpus
from shoal.errors import RepositoryError, ServerError
from shoal.manifest import manifests
from tests import tiny
from tests.conftest import ROOT

ALERT = 0.3
ENGLISH = corpus.texts(150, seed=77)
GERMAN = bench_drift.SENTENCES["German"]


def message(vocabulary: Tokenizer, text: str, **changes: Any) -> bytes:
    ids = vocabulary.encode(text).ids
    row = {"model": "minilm_tokenizer", "version": 1, "length": len(ids), "input_ids": ids}
    return json.dumps(row | changes).encode()


@pytest.fixture(scope="module")
def tokenizer_file(repository: Path) -> Path:
    return repository / "minilm_tokenizer" / "1" / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    made = Tokenizer.from_file(str(tokenizer_file))
    made.no_padding()
    return made


# Statistics.


def test_wordpiece_tells_words_from_what_goes_on_them(tokenizer: Tokenizer, tokenizer_file: Path) -> None:
    vocabulary = Vocabulary.read(tokenizer_file)
    encoding = tokenizer.encode("the unfathomable shoal ☃")
    continued = sum(token.startswith("##") for token in encoding.tokens)
    own = len(encoding.tokens) - 2
    assert continued > 1
    assert encoding.tokens.count("[UNK]") == 1
    features = vocabulary.features(encoding.ids)
    assert features == {"length": own + 2.0, "pieces": continued / own, "unknown": 1 / own}


def test_byte_level_and_sentencepiece_mark_beginnings(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tiny.byte_level())
    tokenizer = Tokenizer.from_file(str(path))
    encoding = tokenizer.encode(" shoals of zebrafish")
    begun = sum(token.startswith("Ġ") for token in encoding.tokens)
    own = [token for token in encoding.tokens if token not in ("<s>", "</s>")]
    assert Vocabulary.read(path).features(encoding.ids)["pieces"] == pytest.approx(1 - begun / len(own))
    pieces = [["<unk>", 0.0], ["▁fish", -1.0], ["es", -2.0]]
    added = [{"id": 0, "content": "<unk>", "special": True}]
    path.write_text(
        json.dumps({"model": {"type": "Unigram", "unk_id": 0, "vocab": pieces}, "added_tokens": added})
    )
    features = Vocabulary.read(path).features([1, 2, 1, 0])
    assert features == {"length": 4.0, "pieces": 0.25, "unknown": 0.25}


def test_an_empty_or_foreign_row_is_no_accident(tokenizer_file: Path) -> None:
    vocabulary = Vocabulary.read(tokenizer_file)
    assert vocabulary.features([101, 102]) == {"length": 2.0, "pieces": 0.0, "unknown": 0.0}
    assert vocabulary.features([101, 102], 5000)["length"] == 5000.0
    with pytest.raises(IndexError):
        vocabulary.features([10_000_000])


def test_bins() -> None:
    lengths = Histogram.of("length", [3.0, 4.0, 5.0, 9000.0])
    assert (lengths.counts[0], lengths.counts[1], lengths.counts[-1]) == (1, 2, 1)
    labels = Histogram.of("label", ["good", "bad", "good"])
    assert (labels.names, labels.counts) == (("bad", "good"), (1, 2, 0))
    assert labels.bin("never seen") == 2
    many = Histogram.of("label", [f"class {number % 77}" for number in range(1000)])
    assert len(many.counts) == 12
    assert sum(many.counts) == 1000
    assert noise(12, 100, 512) < 0.2
    scores = Histogram.of("confidence", list(np.linspace(0, 1, 800)))
    assert set(scores.counts) == {100}
    assert Histogram.of("confidence", [1.0] * 9).counts == (0, 9)  # a score that never changes


def test_a_reference_survives_its_manifest() -> None:
    rows = [{"length": 5.0, "label": "a"}, {"length": 6.0, "label": "b"}]
    reference = ReferenceStatistics.of("sample", rows, np.array([0.6, 0.8], np.float32))
    again = ReferenceStatistics.from_dict(json.loads(json.dumps(reference.to_dict())))
    assert again.features == reference.features
    np.testing.assert_allclose(again.centroid, reference.centroid, atol=1e-6)


def test_distance_is_bounded_and_defined_where_bins_are_empty() -> None:
    assert distance([5, 0, 5], [50, 0, 50]) == 0.0
    assert distance([9, 0], [0, 4]) == pytest.approx(1.0)
    chance = np.random.default_rng(0)
    for _ in range(200):
        counts = chance.integers(1, 9, size=7)
        assert 0.0 <= distance(counts, counts * 3) < 1e-6


def test_noise_is_about_what_equal_distributions_show() -> None:
    chance = np.random.default_rng(0)
    share = chance.dirichlet([3.0] * 8)
    draws = [distance(chance.multinomial(100, share), chance.multinomial(512, share)) for _ in range(300)]
    assert np.mean(draws) == pytest.approx(noise(8, 100, 512), rel=0.1)
    assert max(draws) < 0.25 < ALERT


def test_answers_of_embeddings_and_classifiers() -> None:
    vectors = np.array([[3.0, 4.0], [-3.0, -4.0]], np.float32)
    features = answer_features({"embedding": vectors}, np.array([0.6, 0.8], np.float32))
    assert [row["similarity"] for row in features] == pytest.approx([1.0, -1.0])
    labels = np.array([[b"good", b"bad"]], object)
    assert answer_features({"label": labels, "score": np.array([[0.75, 0.25]], np.float32)}) == [
        {"label": "good", "confidence": 0.75}
    ]


# The window and the monitor.


def test_a_window_forgets_by_number_and_by_time() -> None:
    now = [0.0]
    window = Window(3, rows=4, seconds=10.0, clock=lambda: now[0])
    for number in (0, 0, 1, 2, 2):
        window.add(number)
    assert window.counts().tolist() == [1, 1, 2]
    now[0] = 9.0
    window.add(0)
    now[0] = 11.0
    assert window.counts().tolist() == [1, 0, 0]


def watch(
    tokenizer_file: Path, tokenizer: Tokenizer, **features: Histogram
) -> dict[tuple[str, int], Watched]:
    vocabulary = Vocabulary.read(tokenizer_file)
    rows = [vocabulary.features(tokenizer.encode(text).ids) for text in corpus.texts(512, seed=4)]
    reference = ReferenceStatistics.of("sample", rows)
    reference.features.update(features)
    model = Watched("minilm", "minilm_encoder", ("input_ids", "attention_mask"), reference, vocabulary)
    return {("minilm_tokenizer", 1): model}


def test_nothing_is_said_of_few_rows(tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    monitor = Monitor(watch(tokenizer_file, tokenizer), least=100)
    for text in ENGLISH[:99]:
        monitor.receive(message(tokenizer, text))
    assert monitor.drift() == {"minilm": {}}
    assert monitor.samples() == {"minilm": 99}
    monitor.receive(message(tokenizer, ENGLISH[99]))
    drift = monitor.drift()["minilm"]
    assert drift.keys() == {"length", "pieces", "unknown"}
    assert max(drift.values()) < 0.25


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"model": "minilm_tokenizer", "version": 1, "length": 1, "input_ids": [99999999]}',
        b'{"model": "minilm_tokenizer", "version": 1, "length": 1, "input_ids": ["a"]}',
        b'{"model": "minilm_tokenizer", "version": 1, "length": "a", "input_ids": [1]}',
        b'{"model": "minilm_tokenizer", "version": 1, "length": 1, "input_ids": [[1, 2]]}',
        b'{"model": [], "version": 1, "length": 1, "input_ids": [1]}',
        b'{"model": "another", "version": 1, "length": 1, "input_ids": [1]}',
    ],
)
def test_what_is_no_row_is_passed_over(tokenizer_file: Path, tokenizer: Tokenizer, given: bytes) -> None:
    monitor = Monitor(watch(tokenizer_file, tokenizer))
    monitor.receive(given)
    assert monitor.samples() == {"minilm": 0}


def test_the_network_is_asked_seldom_and_may_be_away(tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    now, asked = [0.0], []

    def ask(network: str, feed: Any) -> dict[str, Any]:
        asked.append((network, {name: array.shape for name, array in feed.items()}))
        if len(asked) == 2:
            raise ConnectionError("away")
        return {"score": np.array([[0.5]], np.float32)}

    confidence = Histogram((1, 1), edges=(0.9,))
    models = watch(tokenizer_file, tokenizer, confidence=confidence)
    monitor = Monitor(models, ask, least=1, ask_seconds=1.0, clock=lambda: now[0])
    for seconds in (0.0, 0.5, 1.0, 2.5, 2.6):
        now[0] = seconds
        monitor.receive(message(tokenizer, "a fish"))
    assert asked == [("minilm_encoder", {"input_ids": (1, 4), "attention_mask": (1, 4)})] * 3
    assert models["minilm_tokenizer", 1].windows["confidence"].counts().tolist() == [2, 0]
    assert monitor.samples() == {"minilm": 5}
    now[0] = 9.0
    monitor.receive(message(tokenizer, "a fish", length=5000))  # the rest of it was not sent
    assert len(asked) == 3


# The tap.


def test_a_tap_is_off_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    assert not any(TrafficSampler("m", "1", {}).wants for _ in range(100))
    assert not TrafficSampler("m", "1", {"SHOAL_MONITOR": "/nowhere", "SHOAL_MONITOR_SHARE": "much"}).wants
    assert "SHOAL_MONITOR_SHARE is 'much'" in caplog.text
    assert 0 < sum(TrafficSampler("m", "1", {"SHOAL_MONITOR": "/nowhere"}).wants for _ in range(1000)) < 200


def test_a_tap_never_waits_and_never_fails(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    tap = TrafficSampler("m", "1", {"SHOAL_MONITOR": str(path), "SHOAL_MONITOR_SHARE": "1"})
    tap.send(range(MOST_TOKENS))  # nobody is there
    with bound(path):  # and here nobody reads
        started = time.perf_counter()
        for _ in range(2000):
            tap.send(range(MOST_TOKENS))
        assert time.perf_counter() - started < 5.0
    tap.send(range(MOST_TOKENS))
    TrafficSampler("m", "1", {"SHOAL_MONITOR": "x" * 500, "SHOAL_MONITOR_SHARE": "1"}).send([1])


def test_a_long_row_is_cut_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with bound(path) as receiver:
        TrafficSampler("m", "3", {"SHOAL_MONITOR": str(path)}).send([30_000] * 9000, [0] * 9000)
        sent = receiver.recv(1 << 16)
    row = json.loads(sent)
    assert (row["model"], row["version"], row["length"]) == ("m", 3, 9000)
    assert len(row["input_ids"]) == len(row["token_type_ids"]) == MOST_TOKENS
    assert len(sent) < 10_000


def test_a_socket_is_ours_alone_and_taken_over_from_the_dead(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    dead.bind(str(path))
    dead.close()
    with bound(path):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(ServerError, match="cannot be listened at"), bound(path):
            pass
    assert not path.exists()
    path.write_text("a file of somebody's")
    with pytest.raises(ServerError), bound(path):
        pass
    assert path.read_text() == "a file of somebody's"


# The figures of docs/drift.md.


def test_the_table_of_distances(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From texts to the last line, compared with scipy's distances of what transformers tokenizes."""
    source = tiny.make(tmp_path / "vectors", "BertModel")
    monkeypatch.setattr(bench_drift, "DRAWS", 5)
    monkeypatch.setattr(bench_drift, "POOL", 1000)
    monkeypatch.setattr(sys, "argv", ["bench", "--source", str(source)])
    bench_drift.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = {(line["rows"], line["count"]): line for line in printed["lines"]}
    tokenizer = AutoTokenizer.from_pretrained(source)

    def counts(texts: list[str]) -> NDArray:
        lengths = [len(ids) for ids in tokenizer(texts, truncation=True).input_ids]
        edges = [0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 10**6]
        return np.histogram(lengths, edges)[0]

    expected = jensenshannon(counts(GERMAN), counts(corpus.texts(512, seed=4)), base=2)
    assert lines["German", 125]["distances"]["length"] == pytest.approx([expected] * 3)
    same, whole = (lines["the same", count]["distances"] for count in (100, 1000))
    # All rows of the pool at once: no draw differs from another.
    assert all(least == pytest.approx(largest) for _, least, largest in whole.values())
    mean, least, largest = same["length"]
    assert whole["length"][0] < mean and least < mean < largest
    expected = jensenshannon(counts(corpus.texts(1000, seed=77)), counts(corpus.texts(512, seed=4)), base=2)
    assert whole["length"][0] == pytest.approx(expected)
    mixed = [lines[rows, 100]["distances"]["pieces"][0] for rows in ("one in 10 German", "one in 5 German")]
    assert same["pieces"][0] < mixed[0] < mixed[1] < lines["German", 125]["distances"]["pieces"][0]
    for entry in printed["noise"]:
        assert entry["mean"] == pytest.approx(entry["predicted"], rel=0.05)


def test_the_table_says_what_it_cannot_do(tmp_path: Path) -> None:
    source = tiny.make(tmp_path / "squad", "BertForQuestionAnswering")
    command = [sys.executable, "-m", "loadtest.bench_drift", "--source", str(source)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: " in done.stderr and "reads more than one text" in done.stderr


# What the export keeps.


def test_every_version_has_its_reference(repository: Path) -> None:
    for manifest in manifests(repository):
        assert manifest.reference is not None
        reference = ReferenceStatistics.from_dict(manifest.reference)
        assert reference.features.keys() == {"length", "pieces", "unknown", "similarity"}
        assert all(sum(histogram.counts) == 512 for histogram in reference.features.values())
        assert reference.centroid is not None
        assert reference.centroid.shape == (384,)
        assert "text" not in json.dumps(manifest.reference).replace('"texts": "sample"', "")


def test_a_repository_without_references_says_so(own_repository: Path) -> None:
    for path in own_repository.glob("*/*/manifest.json"):
        values = json.loads(path.read_text())
        del values["reference"]  # as older exports wrote it
        path.write_text(json.dumps(values))
    with pytest.raises(RepositoryError, match="no version with reference statistics"):
        watched_in(own_repository)


def test_a_classifier_keeps_its_class_balance_of_the_users_own_texts(tmp_path: Path) -> None:
    names = {0: "bad", 1: "fair", 2: "good"}
    tiny.make(tmp_path / "mood", "BertForSequenceClassification", num_labels=3, id2label=names)
    labelled = tmp_path / "eval.csv"
    lines = [f'"{text.replace(chr(34), "")}",good' for text in corpus.texts(40, seed=9)]
    labelled.write_text("\n".join(["text,label", *lines]))
    recipe = EncoderRecipe(str(tmp_path / "mood"), precisions=("fp32",), eval_data=labelled)
    export(recipe, tmp_path / "repository")
    (manifest,) = manifests(tmp_path / "repository")
    assert manifest.reference is not None
    reference = ReferenceStatistics.from_dict(manifest.reference)
    assert reference.texts == "eval_data"
    assert reference.features.keys() == {"length", "pieces", "unknown", "label", "confidence"}
    assert set(reference.features["label"].names) <= set(names.values())
    assert sum(reference.features["label"].counts) == 40


def test_of_rows_that_make_several_sequences_the_first_is_taken(tmp_path: Path) -> None:
    names = ["contradiction", "neutral", "entailment"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    tiny.make(tmp_path / "nli", "BertForSequenceClassification", num_labels=3, **labels)
    recipe = EncoderRecipe(str(tmp_path / "nli"), task="zero-shot-classification")
    subject = prepare(recipe, find_checkpoint(recipe.source), tmp_path).subject
    rows = reference_rows(subject, [])[:20]
    kept = take_reference(subject, subject.reference, rows, labelled=False)
    assert kept is not None
    assert kept["features"].keys() == {"length", "pieces", "unknown"}
    assert sum(kept["features"]["length"]["counts"]) == 20


# The whole way.


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("monitor") / "socket"


@contextmanager
def watched(repository: Path, path: Path) -> Iterator[Server]:
    """A server that sends a row of every request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_MONITOR", str(path))
        patch.setenv("SHOAL_MONITOR_SHARE", "1")
        with running(repository) as server:
            yield server


@pytest.fixture(scope="module")
def watched_server(repository: Path, path: Path, _own_cache: None) -> Iterator[Server]:
    with watched(repository, path) as server:
        yield server


@contextmanager
def listening(monitor: Monitor, path: Path) -> Iterator[None]:
    stop = threading.Event()
    with bound(path) as receiver:
        thread = threading.Thread(target=monitor.listen, args=(receiver, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_another_language_is_seen_and_the_same_kind_of_text_is_not(
    repository: Path, watched_server: Server, path: Path
) -> None:
    def seen(texts: list[str]) -> tuple[dict[str, float], Monitor]:
        monitor = Monitor(watched_in(repository), asks(watched_server.http), ask_seconds=0.0)
        with listening(monitor, path), GrpcClient(watched_server.grpc) as client:
            for sent, text in enumerate(texts, 1):
                client.embed([text])
                if sent % 10 == 0 or sent == len(texts):  # rows that nobody reads in time are dropped
                    wait(lambda: monitor.samples()["minilm"] >= sent)  # noqa: B023
        return monitor.drift()["minilm"], monitor

    english, _ = seen(ENGLISH)
    assert english.keys() == {"length", "pieces", "unknown", "similarity"}
    assert max(english.values()) < 0.2
    german, monitor = seen(GERMAN)
    assert german["pieces"] > ALERT
    assert german["similarity"] > ALERT
    registry = CollectorRegistry()
    registry.register(monitor)
    exposed = generate_latest(registry).decode()
    assert f'shoal_drift{{feature="pieces",model="minilm"}} {german["pieces"]}' in exposed
    assert f'shoal_drift_samples{{model="minilm"}} {len(GERMAN)}.0' in exposed
    # All that is left of the rows: when, and in which bin.
    (model,) = monitor._watched.values()
    for name, window in model.windows.items():
        bins = len(model.reference.features[name].counts)
        assert all(type(when) is float and 0 <= number < bins for when, number in window._rows)


def test_without_a_listener_answers_are_the_same(server: Server, watched_server: Server, path: Path) -> None:
    assert not path.exists()
    with GrpcClient(server.grpc) as plain, GrpcClient(watched_server.grpc) as watched:
        for text in GERMAN[:50]:
            np.testing.assert_array_equal(watched.embed([text]), plain.embed([text]))


def test_a_monitor_that_does_not_keep_up_holds_nobody_up(watched_server: Server, path: Path) -> None:
    with bound(path), GrpcClient(watched_server.grpc) as client:
        for text in GERMAN * 2:  # more than the socket holds
            assert client.embed([text]).shape == (1, 384)


def test_the_command(repository: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "serving.drift", "--repository", str(repository), "--socket", str(path)]
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            tap = TrafficSampler("minilm_tokenizer", "1", {"SHOAL_MONITOR": str(path)})
            for text in GERMAN[:120]:
                tap.send(tokenizer.encode(text).ids)
                time.sleep(0.002)

            def metrics() -> str:
                return str(urllib.request.urlopen(url).read().decode())

            wait(lambda: 'shoal_drift_samples{model="minilm"} 120.0' in metrics())
            assert 'shoal_drift{feature="pieces",model="minilm"} 0.' in metrics()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    assert not path.exists()
    command += ["--port", "70000"]
    second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert second.returncode == 1
    assert "error: port 70000 cannot be had" in second.stderr


def test_the_end_of_the_listener_is_counted_and_it_listens_again(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beside a supervised server; here the monitor fails twice, and then is as it was."""
    from prometheus_client import CollectorRegistry

    from serving.supervisor import drift
    from serving.supervisor.settings import SupervisorSettings

    listened = threading.Event()
    failures = [RuntimeError("no such histogram"), OSError("the socket is gone")]

    def listen(self: Monitor, receiver: socket.socket, stop: threading.Event) -> None:
        if failures:
            raise failures.pop(0)
        listened.set()
        threading.Event().wait()

    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    monkeypatch.setenv("SHOAL_MONITOR", "")
    monkeypatch.setenv("SHOAL_MONITOR_SHARE", "")
    monkeypatch.setattr(Monitor, "listen", listen)
    monkeypatch.setattr(drift, "PAUSE_SECONDS", 0.01)
    registry = CollectorRegistry()
    assert drift.watch_drift(SupervisorSettings(repository, drift_share=1.0), registry) is not None
    assert listened.wait(30)
    assert registry.get_sample_value("shoal_drift_failures_total") == 2
    said = capfd.readouterr().out
    assert "no such histogram" in said and "the socket is gone" in said
    assert said.count('"level": "error"') == 2
