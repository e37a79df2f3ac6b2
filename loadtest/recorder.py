"""Keeps every request that Locust makes, for plots that its own percentiles are too coarse for."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import gevent
from locust import events

from loadtest.samples import STREAM_PARTS, Row
from shoal.paths import write_atomic

MOST_OF_A_FAILURE = 200  # characters
_rows: list[Row] = []
# What the process that sends has to say of itself; see `loadtest.open_loop`.
sender: dict[str, float] = {}


@events.init_command_line_parser.add_listener
def _add_arguments(parser: Any) -> None:
    parser.add_argument(
        "--samples", default="", include_in_web_ui=False, help="folder for every request, in JSON"
    )
    parser.add_argument(
        "--lasts",
        type=float,
        default=0.0,
        include_in_web_ui=False,
        help="end so many seconds after the first answer: the time that users take to connect is not in it",
    )


@events.init.add_listener
def _start(environment: Any, **_: Any) -> None:
    if environment.parsed_options.samples:  # a run of days on the web page must not fill the memory
        events.request.add_listener(_keep)
        events.quitting.add_listener(_write)
    if seconds := environment.parsed_options.lasts:
        begun = False

        def end_later(**_: Any) -> None:
            nonlocal begun
            if not begun:
                begun = True
                gevent.spawn_later(seconds, environment.runner.quit)

        events.request.add_listener(end_later)


def _keep(
    request_type: str,
    response_time: float,
    exception: BaseException | None,
    name: str,
    response_length: int,
    context: dict[str, Any],
    **_: Any,
) -> None:
    if name in STREAM_PARTS:  # they are a part of the request's own row
        return
    failure = f"{type(exception).__name__}: {exception}"[:MOST_OF_A_FAILURE] if exception else ""
    more = (context.get(key) for key in ("index", "lag", "first", "between", "read"))
    _rows.append((time.time(), request_type, response_time, failure, response_length, *more))


def _write(environment: Any, **_: Any) -> None:
    file = Path(environment.parsed_options.samples) / f"{os.getpid()}.json"
    write_atomic(file, json.dumps({"rows": _rows, "sender": sender}))
