"""Print what an image installs: the project's dependencies and those of some extras, one a line.

    python3 deploy/requirements.py serve,monitor

They are installed before the source is copied, so that a changed line of it does not fetch them all again.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import tomllib

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]


def of_extra(name: str) -> Iterator[str]:
    """Its requirements, and those of extras that it is made of."""
    for requirement in PROJECT["optional-dependencies"][name]:
        own = re.fullmatch(rf"{PROJECT['name']}\[(.+)\]", requirement)
        if own:
            for part in own[1].split(","):
                yield from of_extra(part.strip())
        else:
            yield requirement


wanted = [*PROJECT["dependencies"], *(line for extra in sys.argv[1].split(",") for line in of_extra(extra))]
sys.stdout.write("\n".join(dict.fromkeys(wanted)) + "\n")
