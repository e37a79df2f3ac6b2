"""Decoders as a family: how their checkpoints are opened, built, measured and published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedModel
from tritonclient.grpc import model_config_pb2 as triton

from export.checkpoint.loading import load
from export.checkpoint.opened import open_tokenizer
from export.checkpoint.source import Checkpoint, check_source
from export.checkpoint.tokenizer import write_tokenizer
from export.evidence import Verified
from export.exported import Exported
from export.family import Family, OneModel
from export.generation import publish, raw, verify
from export.generation.build import build
from export.generation.checkpoint import decoder_settings, find_decoder
from export.generation.choosing import Comparison
from export.generation.config import generation_config
from export.generation.evidence import GenerationEvidence
from export.generation.recipe import GenerationRecipe
from export.generation.reference import prompts_of, take_reference
from export.raw.measure import RawAnswers
from export.repository import ModelFiles, Published
from serving.generation.runtime import graph_in, open_runner
from serving.generation.sequence import SCORED_TOKENS
from serving.in_process import InProcess
from shoal.manifest import Manifest
from shoal.progress import Silent


@dataclass
class DecoderSubject(OneModel):
    """A checkpoint, opened; see `export.family.Subject`. PyTorch's model is loaded when it is needed first.

    Attributes:
        decoder: the checkpoint with what transformers says of its use.
        eval_data: text of the user.
    """

    decoder: publish.Decoder
    eval_data: Path | None
    task: str = GenerationRecipe.TASK
    _compared: Comparison | None = field(default=None, repr=False)
    _original: PreTrainedModel | None = field(default=None, repr=False)

    def describe(self) -> dict[str, Any]:
        """See `Subject`."""
        return self.decoder.checkpoint.describe()

    def unmeasured(self, repository: Path, work: Path) -> Published | None:
        """The layout of Triton's vLLM backend, where the recipe's engine is vLLM."""
        if self.decoder.recipe.engine != "vllm":
            return None
        return publish.write_vllm(repository, work, self.decoder)

    def build(self, work: Path, progress: Silent) -> dict[str, Exported]:
        """See `Subject`."""
        graphs, self._compared = build(self.decoder.recipe, self.decoder.checkpoint, work, progress)
        return graphs

    def published(self, manifest: Manifest, repository: Path) -> Exported:
        """See `Subject`."""
        return Exported.read(graph_in(repository / manifest.network / str(manifest.version)))

    def measure(
        self, graphs: Mapping[str, Exported], published: Mapping[str, Manifest], progress: Silent
    ) -> dict[str, GenerationEvidence]:
        """See `Subject`."""
        tokenizer = Tokenizer.from_file(str(self.decoder.tokenizer))
        chosen = verify.sample(tokenizer, self.eval_data, progress)
        reference = verify.measure_reference(self._loaded(progress), chosen, progress)
        evidence = verify.measure(reference, graphs, chosen, progress=progress)
        serving = {key: manifest.evidence.get("serving") for key, manifest in published.items()}
        if self._compared is not None:
            serving["int8"] = self._compared.to_dict()
        return {key: replace(entry, serving=serving.get(key)) for key, entry in evidence.items()}

    def ask_original(self, work: Path | None, progress: Silent) -> RawAnswers:
        """See `Subject`."""
        config = generation_config(self.decoder.recipe, self.decoder.settings, version=1)
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        library = open_tokenizer(self.decoder.checkpoint)
        prompts = raw.Prompts.of(library, self.decoder.tokenizer, parameters)
        answers = raw.reference_of(self._loaded(progress), prompts, progress)
        return RawAnswers(answers, raw.TOLERANCES.__getitem__)

    def part(self, graph: Exported) -> ModelFiles:
        """See `OneModel`."""
        return publish.part_of(graph, self.decoder)

    def answering(self, config: triton.ModelConfig, folder: Path, precision: str) -> InProcess:
        """See `OneModel`; with a cache for few requests, and guessing ahead as versions in fp32 do."""
        return super().answering(raw.small(config, exact=precision == "fp32"), folder, precision)

    def statistics(self, proven: Sequence[Verified], progress: Silent) -> dict[str, dict[str, Any] | None]:
        """Keep statistics of prompts under the version that will be served; the others' are near."""
        served = proven[-1]
        prompts = prompts_of(self.eval_data, self.decoder.tokenizer, self.decoder.settings)
        gpu = 0 if served.evidence.precision in GenerationRecipe.ON_GPU else None
        with progress.step("Keep statistics to see drift by", total=len(prompts)) as advance:
            runner = open_runner(served.exported.path, rows=1, max_length=SCORED_TOKENS, gpu=gpu)
            labelled = self.eval_data is not None
            found = take_reference(
                runner, self.decoder.tokenizer, prompts, labelled=labelled, advance=advance
            )
        return {item.evidence.precision: found for item in proven}

    def _loaded(self, progress: Silent) -> PreTrainedModel:
        if self._original is None:
            with progress.step(f"Load {self.decoder.checkpoint.id}"):
                self._original = load_original(self.decoder.checkpoint)
        return self._original


def find(
    recipe: GenerationRecipe, progress: Silent, *, eval_data: Path | None, versions: Sequence[Manifest] = ()
) -> Callable[[Path], DecoderSubject]:
    """See `export.family.Find`."""
    with progress.step(f"Find {recipe.source}"):
        checkpoint = find_decoder(recipe.source)
        check_source(checkpoint, versions)
    return lambda folder: DecoderSubject(decoder_of(recipe, checkpoint, folder), eval_data)


def decoder_of(recipe: GenerationRecipe, checkpoint: Checkpoint, folder: Path) -> publish.Decoder:
    """A checkpoint with what transformers says of its use.

    Args:
        folder: the tokenizer that will be served is written there.
    """
    tokenizer = write_tokenizer(open_tokenizer(checkpoint), folder)
    return publish.Decoder(recipe, checkpoint, decoder_settings(checkpoint), tokenizer)


def load_original(checkpoint: Checkpoint) -> PreTrainedModel:
    """The PyTorch original; see `export.checkpoint.loading.load`."""
    # PyTorch's fused attention leaves out the cap on attention scores that Gemma 2 was trained with.
    capped = checkpoint.config.get("attn_logit_softcapping")
    options = {"attn_implementation": "eager"} if capped else {}
    return load("AutoModelForCausalLM", checkpoint, GenerationRecipe.TASK, **options)


FAMILY = Family(
    ("torch", "transformers", "onnxruntime-genai", "onnx", "onnxruntime", "openvino", "tokenizers", "numpy"),
    find,
)
