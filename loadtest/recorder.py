"""Keeps every request that Locust makes, for plots that its own percentiles are too coarse for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from locust import events

_samples: list[tuple[float, str, float, str, str, int]] = []


@events.init_command_line_parser.add_listener
def _add_arguments(parser: Any) -> None:
    parser.add_argument("--samples", default="", include_in_web_ui=False, help="JSON file for every request")


@events.init.add_listener
def _start(environment: Any, **_: Any) -> None:
    if environment.parsed_options.samples:  # a run of days on the web page must not fill the memory
        events.request.add_listener(_keep)
        events.quitting.add_listener(_write)


def _keep(
    request_type: str,
    response_time: float,
    exception: BaseException | None,
    name: str,
    response_length: int,
    **_: Any,
) -> None:
    failure = f"{type(exception).__name__}: {exception}" if exception else ""
    _samples.append((time.time(), request_type, response_time, failure, name, response_length))


def _write(environment: Any, **_: Any) -> None:
    Path(environment.parsed_options.samples).write_text(json.dumps(_samples))
