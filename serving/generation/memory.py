"""What a decoder's keys and values take in memory: said at the start, and refused where it cannot fit."""

from __future__ import annotations

from dataclasses import dataclass

from serving.onnxruntime.options import BadConfig
from shoal.machine import memory_bytes


@dataclass(frozen=True)
class Memory:
    """Of a model and its cache.

    Attributes:
        weights: bytes.
        bytes_per_token: what one token of one row takes in the cache.
        rows: sequences the cache holds.
        max_length: tokens a row holds.
        gpu: whether the cache lies in a GPU's memory, which is taken at once.
    """

    weights: int
    bytes_per_token: int
    rows: int
    max_length: int
    gpu: bool = False

    def describe(self) -> tuple[str, bool]:
        """A sentence on what the cache takes, and whether all rows fit into the memory when they are full."""
        most = memory_bytes()
        full = self.rows * self.max_length * self.bytes_per_token
        told = (
            f"{_mb(self.weights)} of weights; keys and values take {self.bytes_per_token / 1e3:.0f} kB a"
            f" token, at most {_mb(self.bytes_per_token * self.max_length)} a request"
        )
        if self.gpu:
            return (
                f"{told}, and {_mb(full)} of the GPU's memory for {self.rows} requests are taken at the"
                " start; max_num_seqs and max_model_len set them"
            ), True
        told = f"{told}, and memory is taken as they are written"
        if self.weights + full <= most:
            return told, True
        return (
            f"{told}; {self.rows} requests at their longest need {_mb(self.weights + full)}, and this process"
            f" may use {_mb(most)}: lower max_num_seqs or max_model_len"
        ), False

    def check(self) -> None:
        """Refuse a model of which not even one request fits.

        Raises:
            BadConfig: so it is.
        """
        row = self.max_length * self.bytes_per_token
        if self.weights + row > memory_bytes():
            raise BadConfig(
                f"one context of {self.max_length} tokens needs {_mb(row)} beside {_mb(self.weights)} of"
                f" weights, and this process may use {_mb(memory_bytes())}: lower max_model_len in"
                " config.pbtxt"
            )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
