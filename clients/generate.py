"""`make clients`: makes the blocking client from the asyncio one, so that each method is written once.

`--check` writes nothing and fails where the file is not what would be made, which `make lint` calls.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE, MADE = "asynchronous.py", "blocking.py"
WORDS = {
    "AsyncClient": "BlockingClient",
    "AsyncGenerator": "Generator",
    "aclosing": "closing",
    "asynchronous": "blocking",
}
HEADER = "# Made from asynchronous.py by `make clients`; edit that one.\n"


def made() -> str:
    """The blocking client's source."""
    import unasync  # noqa: PLC0415 - a tool of developers

    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "from"), Path(folder, "to")
        source.mkdir()
        (source / SOURCE).write_text((here / SOURCE).read_text(encoding="utf-8"), encoding="utf-8")
        rule = unasync.Rule(str(source), str(target), additional_replacements=WORDS)
        unasync.unasync_files([str(source / SOURCE)], [rule])
        text = (target / SOURCE).read_text(encoding="utf-8")
    text = text.replace("Generator[Part, None]", "Generator[Part, None, None]")
    text = text[text.index("from __future__") :]
    text = f'{HEADER}"""What users of the blocking clients call, whatever transport is below it."""\n\n{text}'
    for command in (["check", "--fix", "--select", "I", "--quiet"], ["format", "--quiet"]):
        call = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(here / MADE), "-"]
        text = subprocess.run(call, input=text, capture_output=True, text=True, check=True).stdout
    return text


def main() -> None:
    """Write it, or compare."""
    path, text = Path(__file__).with_name(MADE), made()
    if "--check" not in sys.argv[1:]:
        path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        sys.exit(f"{path} is not what {SOURCE} makes: run make clients")


if __name__ == "__main__":
    main()
