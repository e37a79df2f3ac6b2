"""Flags of the command that do not go with the checkpoint."""

from __future__ import annotations

from tests.broken.damage import Case

FLAGS: dict[str, Case] = {
    "an unknown task": ("bert", lambda f: None, ["--task", "poetry"], 2, "unknown task poetry"),
    "labelled data that are not there": (
        "bert",
        lambda f: None,
        ["--eval-data", "/nowhere.csv"],
        2,
        "/nowhere.csv",
    ),
    "components for a decoder": (
        "decoder",
        lambda f: None,
        ["--truncate-dim", "8"],
        2,
        "--truncate-dim is for",
    ),
}
