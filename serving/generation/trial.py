"""Compiles a grammar in another process first, where it may take no more than its share.

Some definitions take minutes to compile, or overflow the stack, which would end the model's own process. Only
the attempt tells which. A helper process forks for each, so that what goes wrong goes with the fork.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from serving.generation.structure import Compiler

CPU_SECONDS = 2.0
SECONDS = 60.0  # of waiting, on a machine that is busy
MEMORY = 256 * 2**20  # bytes
STACK = 8 * 2**20  # bytes; see `admission.STACK`
LARGEST = 64 * 2**20  # bytes of a compiled grammar
REMEMBERED = 1024  # grammars that have passed, by their hashes


class Trial:
    """Asks the helper process, which is started here, and again when it has died.

    Args:
        tokenizer, vocabulary, ends: see `structure.Compiler`.
    """

    def __init__(self, tokenizer: Path, vocabulary: int, ends: Sequence[int]) -> None:
        arguments = (str(tokenizer), str(vocabulary), json.dumps(list(ends)))
        self._command = [sys.executable, "-m", __name__, *arguments]
        self._lock = threading.Lock()
        self._passed: dict[bytes, int] = {}
        self._closed = False
        self._helper = self._start()

    def __call__(self, kind: str, grammar: str) -> str:
        """What is wrong with a grammar, or "".

        Raises:
            OSError: the helper died or was closed, and cannot tell.
        """
        question = _question(kind, grammar)
        known = hashlib.sha256(question.encode()).digest()
        with self._lock:
            if known in self._passed:
                return ""
            if self._helper.poll() is not None and not self._closed:
                self._helper = self._start()
            if self._closed:
                self._helper.kill()  # it may have been started meanwhile
                raise OSError("the server is stopping")
            assert self._helper.stdin and self._helper.stdout  # noqa: S101 - pipes
            self._helper.stdin.write(question)
            self._helper.stdin.flush()
            answer = self._helper.stdout.readline()
            if not answer:
                raise OSError("the process that tries grammars has died; try again")
            wrong, size = json.loads(answer)
            if not wrong:
                self._passed[known] = int(size)
                if len(self._passed) > REMEMBERED:
                    del self._passed[next(iter(self._passed))]
        return str(wrong)

    def size(self, kind: str, grammar: str) -> int:
        """Bytes that a grammar which has passed takes when it is compiled; 0 of one that is forgotten."""
        return self._passed.get(hashlib.sha256(_question(kind, grammar).encode()).digest(), 0)

    def close(self) -> None:
        """End the helper, and with it whatever is tried; nothing can be tried from now on."""
        self._closed = True
        self._helper.kill()
        self._helper.wait()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # a Ctrl-C is for the server, whose end closes the helper's stdin
        )


def _question(kind: str, grammar: str) -> str:
    """A line for the helper."""
    return json.dumps([kind, grammar]) + "\n"


def _size(of: str) -> int:
    """Bytes of this process, by its name in /proc/self/status."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(f"{of}:") + 1]) * 1024


def _try(compiler: Compiler, kind: str, grammar: str) -> None:
    """Compile within limits, print what is wrong, and end this process."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    limits = {
        resource.RLIMIT_AS: _size("VmSize") + MEMORY,
        resource.RLIMIT_STACK: STACK,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, resource.getrlimit(limit)[1]))
    wrong, before = "", _size("RssAnon")
    held = []  # until it has been measured
    try:
        held.append(compiler.compile(kind, grammar))
    except ValueError as error:
        wrong = str(error)
    size = _size("RssAnon") - before
    if size > LARGEST:
        wrong = wrong or f"compiled it takes {size >> 20} MiB, at most {LARGEST >> 20} are accepted"
    print(json.dumps([wrong, size]), flush=True)  # noqa: T201 - the answer
    os._exit(0)


def main() -> None:
    """Answer each grammar on stdin, until it is closed."""
    tokenizer, vocabulary, ends = sys.argv[1:]
    compiler = Compiler(Path(tokenizer), int(vocabulary), json.loads(ends))
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                _try(compiler, *json.loads(line))
            finally:  # whatever it was, the loop is the parent's
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM):
            wrong = f"to compile it takes more than {CPU_SECONDS:g} seconds"
        elif status:
            wrong = "to compile it takes too much memory, or it is nested too deep"
        else:
            continue  # the fork has answered
        print(json.dumps([wrong, 0]), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
