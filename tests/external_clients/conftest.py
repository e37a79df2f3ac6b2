"""One service of four models, a gateway in front of it, the originals of the models, and the clients.

Each client has an environment of its own, which `make test-clients` makes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from export.checkpoint.source import find_checkpoint
from export.encoder import verify
from export.encoder.recipe import EncoderRecipe
from export.generation import verify as decoder_verify
from export.generation.checkpoint import find_decoder
from export.generation.recipe import GenerationRecipe
from export.run import export
from serving import service as services
from serving.ports import Ports
from tests import tiny
from tests.conftest import ROOT
from tests.export.encoder.test_tasks import CHECKPOINTS
from tests.serving.gateway.running import Running, gateway

ENVIRONMENTS = ROOT / ".venv-clients"
# By its name in tiktoken's cache, the SHA-1 of its URL. llama-index brings it.
CL100K = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.clients)


def environment(client: str) -> Path:
    """The `bin` of a client's environment; a test that needs one which is not there is skipped."""
    folder = ENVIRONMENTS / client / "bin"
    if not (folder / "python").exists():
        pytest.skip(f"{client} is not installed: make test-clients does so")
    return folder


@pytest.fixture(scope="session")
def cl100k() -> Path | None:
    """OpenAI's file cl100k_base.tiktoken; None: llama-index, which brings it, is not installed."""
    return next((ENVIRONMENTS / "llama_index").glob(f"lib/*/site-packages/llama_index/**/{CL100K}"), None)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> dict[str, Path]:
    """By the name of a model, the checkpoint that it is exported from; `ranker` and `mood` are random."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("ranker", "mood"):
        architecture, config, _ = CHECKPOINTS[name]
        tiny.make(folder / name, architecture, **config)
    return {
        "minilm": find_checkpoint(EncoderRecipe().source).folder,
        "smollm2": find_decoder(GenerationRecipe().source).folder,
        "ranker": folder / "ranker",
        "mood": folder / "mood",
    }


@pytest.fixture(scope="session")
def service(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[services.Service]:
    """All of them in fp32, so that they answer as the originals do."""
    repository = tmp_path_factory.mktemp("clients") / "model_repository"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "SPEED_ROUNDS", 1)
        patch.setattr(decoder_verify, "SPEED_ROUNDS", 1)
        patch.setattr(decoder_verify, "WINDOWS", 4)
        for name in ("minilm", "ranker", "mood"):
            recipe = EncoderRecipe(source=str(checkpoints[name]), name=name, precisions=("fp32",))
            export(recipe, repository)
        export(
            GenerationRecipe(source=str(checkpoints["smollm2"]), name="smollm2", precisions=("fp32",)),
            repository,
        )
    started = services.start(repository, Ports(0, 0, 0), detach=True)
    yield started
    services.stop(started)


@pytest.fixture(scope="session")
def running(
    service: services.Service, tmp_path_factory: pytest.TempPathFactory, cl100k: Path | None
) -> Iterator[Running]:
    """A gateway that takes token ids for OpenAI's, where their table is there."""
    flags = ("--token-ids=minilm=cl100k", f"--cl100k={cl100k}") if cl100k else ()
    with gateway(service, *flags, log=tmp_path_factory.mktemp("gateway") / "log") as made:
        yield made


Caller = Callable[..., Any]


@pytest.fixture(scope="session")
def call(running: Running, cl100k: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Caller:
    """Runs `calls/call_CLIENT.py` in the client's environment; gives what it prints, which is JSON."""
    folder = tmp_path_factory.mktemp("clients-home")
    if cl100k:
        (folder / CL100K).symlink_to(cl100k)

    def run(client: str, **given: Any) -> Any:
        script = Path(__file__).parent / "calls" / f"call_{client}.py"
        done = subprocess.run(
            [environment(client) / "python", script, json.dumps({"url": running.url, **given})],
            cwd=folder,
            # No key and no proxy of the user's.
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "TIKTOKEN_CACHE_DIR": str(folder),
                "NO_PROXY": "*",
            },
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def embedder(checkpoints: dict[str, Path]) -> SentenceTransformer:
    return SentenceTransformer(str(checkpoints["minilm"]), device="cpu")


@pytest.fixture(scope="session")
def ranker(checkpoints: dict[str, Path]) -> CrossEncoder:
    return CrossEncoder(str(checkpoints["ranker"]), device="cpu")


@pytest.fixture(scope="session")
def classifier(checkpoints: dict[str, Path]) -> Any:
    return pipeline("text-classification", model=str(checkpoints["mood"]), top_k=None, device="cpu")


class Writer:
    """SmolLM2 by transformers."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def chat(self, prompt: str, tokens: int) -> str:
        """The likeliest answer to a user."""
        messages = [{"role": "user", "content": prompt}]
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        return self._write(ids, tokens)

    def complete(self, prompt: str, tokens: int) -> str:
        """How a text goes on."""
        return self._write(self.tokenizer(prompt, return_tensors="pt").input_ids, tokens)

    def _write(self, ids: torch.Tensor, tokens: int) -> str:
        with torch.inference_mode():
            done = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
            )
        return self.tokenizer.decode(done[0, ids.shape[1] :], skip_special_tokens=True)

    def likelihood(self, context: list[int], more: list[int]) -> tuple[float, bool]:
        """The log probability of some tokens after others, and whether each is the likeliest."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([context + more])).logits[0, len(context) - 1 : -1]
        wanted = torch.tensor(more)
        found = torch.log_softmax(logits.double(), -1).gather(1, wanted[:, None]).sum()
        return float(found), bool((logits.argmax(-1) == wanted).all())


@pytest.fixture(scope="session")
def writer(checkpoints: dict[str, Path]) -> Writer:
    return Writer(checkpoints["smollm2"])
