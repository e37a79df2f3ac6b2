"""The files of the wheel `nvidia-pytriton` that make a server; its Python API is not used."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from shoal.errors import MissingDependency, ServerError, install_hint


@dataclass(frozen=True)
class Wheel:
    """Where the parts of the server lie.

    Attributes:
        root: holds `bin/tritonserver`, `backends`, `caches` and `python_backend_stubs`.
        libraries: the shared libraries the wheel brought along.
    """

    root: Path
    libraries: Path

    @property
    def server(self) -> Path:
        """The tritonserver binary."""
        return self.root / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        """The process that runs Python models, built for this Python."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return self.root / "python_backend_stubs" / version / "triton_python_backend_stub"

    def environment(self) -> dict[str, str]:
        """The child's environment: this process's, with what the server and its stubs must find.

        The stub embeds Python: it takes libpython from the running Python's library folder, and finds
        the virtual environment through `python3` on PATH.
        """
        env = dict(os.environ)
        libraries = [str(self.libraries), sysconfig.get_config_var("LIBDIR"), env.get("LD_LIBRARY_PATH", "")]
        env["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
        env["PATH"] = f"{Path(sys.executable).parent}:{env.get('PATH', '')}"
        env.pop("PYTHONHOME", None)
        return env


def find_wheel() -> Wheel:
    """The installed wheel, checked for this Python.

    Raises:
        MissingDependency: the wheel is not installed.
        ServerError: it is, but cannot run under this Python.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        if sys.version_info >= (3, 13):
            raise ServerError(
                f"the embedded Triton is for Python 3.10 to 3.12, this is {version}",
                hint="use such a Python, or docker compose up",
            )
        raise MissingDependency("nvidia-pytriton (the embedded Triton)", extra="serve")
    package = Path(spec.origin).parent
    wheel = Wheel(package / "tritonserver", package.parent / "nvidia_pytriton.libs")
    if not wheel.stub.is_file():
        have = ", ".join(sorted(p.name for p in wheel.stub.parent.parent.glob("3.*")))
        raise ServerError(f"the embedded Triton has no stub for Python {version}", hint=f"it has {have}")
    library = sysconfig.get_config_var("INSTSONAME") or ""
    folder = sysconfig.get_config_var("LIBDIR") or ""
    if not library.endswith(".so.1.0") or not (Path(folder, library).exists() or _loadable(library)):
        raise ServerError(
            f"libpython{version}.so.1.0 is not here, and Triton's stub needs it",
            hint=f"Debian, Ubuntu: apt install libpython{version}; pyenv: build with --enable-shared",
        )
    numpy = metadata.version("numpy")
    if int(numpy.partition(".")[0]) >= 2:
        raise ServerError(f"numpy {numpy} kills Triton's Python stub", hint=install_hint("serve"))
    return wheel


def _loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def server_version() -> str:
    """The version of the wheel and of the Triton inside it."""
    return f"2.51.0 (nvidia-pytriton {metadata.version('nvidia-pytriton')})"
