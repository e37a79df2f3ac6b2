"""Print what an image installs: the project's dependencies and those of some extras, one a line.

    python3 deploy/requirements.py serve,monitor
    python3 deploy/requirements.py export --gpu

They are installed before the source is copied, so that a changed line of it does not fetch them all again.
With `--gpu` the builds for GPUs take the place of those that would bring the wheel `onnxruntime`, whose files
would lie over those of `onnxruntime-gpu`.
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


# With CUDA and cuDNN, which it loads from there: those of an image may be of another major version.
FOR_GPUS = {"onnxruntime": "onnxruntime-gpu[cuda,cudnn]", "onnxruntime-genai": "onnxruntime-genai-cuda"}


def for_gpus(requirement: str) -> str:
    """The build of a package for GPUs, in the same version; of others the package."""
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    return FOR_GPUS.get(name, name) + requirement[len(name) :]


wanted = [*PROJECT["dependencies"], *(line for extra in sys.argv[1].split(",") for line in of_extra(extra))]
if "--gpu" in sys.argv:
    wanted = [for_gpus(requirement) for requirement in wanted]
sys.stdout.write("\n".join(dict.fromkeys(wanted)) + "\n")
