"""OpenVINO GenAI: its continuous batching pipeline in process, step by step."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.peers.load import Answer, Send, arguments, give_up, measure, parse, report, say


def exported(model: Path, weights: str, cache: Path) -> Path:
    """The model in OpenVINO's format, by optimum-intel, made once for these weights."""
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    folder = cache / f"openvino-{weights}-{digest.hexdigest()[:12]}"
    if folder.exists():
        return folder
    say(f"exporting with {weights} weights to {folder}")
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "made"
        command: list[str | Path] = [
            *(Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "--model", model),
            *("--task", "text-generation-with-past", "--weight-format", weights, made),
            "--disable-convert-tokenizer",
        ]
        if weights == "int4":
            # The default of 128 divides fewer models' channels.
            command += ["--group-size", "64"]
        # CI keeps OpenVINO's telemetry from calling home.
        environment = os.environ | {"CI": "true", "HF_HUB_OFFLINE": "1"}
        if subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode:
            give_up("the export failed, as told above")
        shutil.move(made, folder)
    return folder


def sender(pipeline: Any, new_tokens: int) -> Send:
    """Drives the pipeline by hand: after each step, reads what each request has."""
    openvino = import_module("openvino")
    config = import_module("openvino_genai").GenerationConfig(
        max_new_tokens=new_tokens, ignore_eos=True, do_sample=False
    )

    def send(prompts: list[list[int]]) -> list[Answer]:
        answers = [Answer() for _ in prompts]
        handles = [
            pipeline.add_request(number, openvino.Tensor(np.array([prompt], np.int64)), config)
            for number, prompt in enumerate(prompts)
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            now = time.perf_counter()
            for answer, handle in zip(answers, handles, strict=True):
                if handle.can_read():
                    answer.times.append(now)
                    answer.tokens += sum(len(output.generated_ids) for output in handle.read().values())
        return answers

    return send


def main() -> None:
    """Export if need be, measure, report."""
    parser = arguments(__doc__)
    parser.add_argument("--weights", choices=["fp32", "fp16", "int8", "int4"], default="int8")
    options = parse(parser)
    genai = import_module("openvino_genai")
    folder = exported(options.model, options.weights, options.cache)
    say("loading")
    # Dynamic quantization of activations and the precision of the KV cache stay as OpenVINO chooses them.
    # So does the scheduler: at most 256 tokens a step.
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = options.chats is not None
    pipeline = genai.ContinuousBatchingPipeline(
        folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": options.threads}
    )
    results = measure(sender(pipeline, options.new_tokens), options)
    settings = f"continuous batching, {options.weights} weights, in process, {options.threads} threads"
    report("openvino-genai", genai.get_version(), settings, results)


if __name__ == "__main__":
    main()
