"""Sampling parameters as a caller sends them."""

from __future__ import annotations

import json
from typing import Any

from serving.generation.params import SamplingParams


def params_of(**given: Any) -> SamplingParams:
    return SamplingParams.from_json(json.dumps(given))
