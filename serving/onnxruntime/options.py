"""Triton's documented options of the onnxruntime backend, as ONNX Runtime's session options.

Knows nothing of Triton but the model config's dict. Anything it does not understand is refused by name:
an option that is silently ignored is a wrong answer to "why is it slow".
Source: the README of triton-inference-server/onnxruntime_backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnxruntime

from serving.parameters import MAX_RUN_PADDING, MAX_RUN_TOKENS, ROW_PADDING, parameters_of
from shoal.machine import available_cpus

# ONNX Runtime's log levels; it prints errors in colours, and raises them besides.
ERROR, FATAL = 3, 4
# Keys under `parameters`; `string_value` holds the number.
_COUNTS = ("intra_op_thread_count", "inter_op_thread_count")
_SWITCHES = {
    "enable_mem_arena": "enable_cpu_mem_arena",
    "enable_mem_pattern": "enable_mem_pattern",
}
# Said to those who call the model, and nothing to a session; see `export.encoder.config.facts_of`.
FACTS = ("task", "sample", ROW_PADDING)
# How the rows of requests are grouped, see `serving.onnxruntime.batching`.
GROUPING = (MAX_RUN_TOKENS, MAX_RUN_PADDING)
PARAMETERS = (*_COUNTS, "execution_mode", *_SWITCHES, *GROUPING)
ACCELERATORS = {"cpu": ("openvino",), "gpu": ("cuda", "tensorrt")}
# `optimization { graph { level } }`: Triton's numbers, which are not ONNX Runtime's.
_LEVELS = {
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class BadConfig(ValueError):
    """The model config asks for something this backend does not have; the message names it."""


@dataclass(frozen=True)
class Options:
    """What a model config asks of a session.

    Attributes:
        intra_op_threads: threads inside one operator; 0: the CPUs this process may use, shared by the
            instances of the model.
        inter_op_threads: threads across operators, in parallel mode only.
        parallel: run independent operators at once.
        level: graph optimization.
        switches: ONNX Runtime session options by their own names.
        accelerators: execution accelerators asked for, first choice first, e.g. `openvino`.
        instances: how many sessions share the CPUs.
        row_padding: the token id that fills rows up; None: rows are not grouped by length.
        max_run_tokens, max_run_padding: tokens of one run, and of its padding; 0: as `grouped` has it.
    """

    intra_op_threads: int
    inter_op_threads: int
    parallel: bool
    level: onnxruntime.GraphOptimizationLevel
    switches: dict[str, bool]
    accelerators: tuple[str, ...]
    instances: int
    row_padding: int | None
    max_run_tokens: int
    max_run_padding: int

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Options:
        """Read a Triton model config.

        Raises:
            BadConfig: a parameter, a value or an accelerator is unknown.
        """
        parameters = parameters_of(config)
        unknown = sorted(set(parameters) - {*PARAMETERS, *FACTS})
        if unknown:
            raise BadConfig(f"unknown parameter {', '.join(unknown)}; known: {', '.join(PARAMETERS)}")
        intra, inter = (_number(parameters, key, range(1025)) for key in _COUNTS)
        tokens, padding = (_number(parameters, key, range(1 << 20)) for key in GROUPING)
        optimization = config.get("optimization") or {}
        level = int((optimization.get("graph") or {}).get("level", 0))
        if level not in _LEVELS:
            raise BadConfig(f"graph optimization level {level} is unknown; known: -1, 0, 1, 2")
        return cls(
            intra_op_threads=intra,
            inter_op_threads=inter,
            parallel=bool(_number(parameters, "execution_mode", range(2))),
            level=_LEVELS[level],
            switches={
                option: bool(_number(parameters, key, range(2)))
                for key, option in _SWITCHES.items()
                if key in parameters
            },
            accelerators=_accelerators(optimization.get("execution_accelerators") or {}),
            instances=sum(int(group.get("count") or 1) for group in config.get("instance_group", [])) or 1,
            row_padding=int(parameters[ROW_PADDING]) if ROW_PADDING in parameters else None,
            max_run_tokens=tokens,
            max_run_padding=padding,
        )

    def session_options(self) -> onnxruntime.SessionOptions:
        """Arguments of `onnxruntime.InferenceSession`."""
        options = session_options(self.intra_op_threads or max(1, available_cpus() // self.instances))
        options.inter_op_num_threads = self.inter_op_threads
        options.graph_optimization_level = self.level
        if self.parallel:
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        for option, value in self.switches.items():
            setattr(options, option, value)
        return options


def session_options(threads: int = 0, *, measured: bool = False) -> onnxruntime.SessionOptions:
    """Options of any session of this project.

    Args:
        threads: threads inside one operator; 0: as many as ONNX Runtime chooses.
        measured: the session has the CPUs for itself, and its errors are raised to somebody who expects them;
            otherwise it serves beside others.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = FATAL if measured else ERROR
    if not measured:
        # Workers that spin after a run take the CPU from the tokenizer and from Triton itself.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _number(parameters: dict[str, str], key: str, allowed: range) -> int:
    text = parameters.get(key, "0")
    if not text.lstrip("-").isdigit() or int(text) not in allowed:
        raise BadConfig(f"parameter {key} is {text!r}, it must be {allowed.start} to {allowed.stop - 1}")
    return int(text)


def _accelerators(asked: dict[str, Any]) -> tuple[str, ...]:
    names = []
    for device, known in ACCELERATORS.items():
        for entry in asked.get(f"{device}_execution_accelerator", []):
            name = entry["name"]
            if name not in known:
                raise BadConfig(f"unknown {device} execution accelerator {name}; known: {', '.join(known)}")
            if entry.get("parameters"):
                raise BadConfig(f"parameters of the accelerator {name} are not supported by this backend")
            names.append(name)
    return tuple(names)
