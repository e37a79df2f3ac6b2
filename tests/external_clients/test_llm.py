"""The command `llm` with a model of extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.external_clients.conftest import Writer, environment
from tests.serving.gateway.running import Running

PROMPT = "Name a fish that swims in shoals."
MODEL = """
- model_id: fish
  model_name: smollm2
  api_base: "{url}/v1"
  supports_schema: true
  supports_tools: true
"""


@pytest.fixture(scope="module")
def home(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm")
    (folder / "extra-openai-models.yaml").write_text(MODEL.format(url=running.url))
    return folder


def llm(home: Path, *arguments: str) -> str:
    """What the command prints."""
    done = subprocess.run(
        [environment("llm") / "llm", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "LLM_USER_PATH": str(home), "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_prompts(home: Path, writer: Writer) -> None:
    expected = writer.chat(PROMPT, 24)
    asked = ["-m", "fish", "-o", "temperature", "0", "-o", "max_tokens", "24", PROMPT]
    for more in ([], ["--no-stream"]):
        assert llm(home, *asked, *more).strip() == expected.strip()
        (logged,) = json.loads(llm(home, "logs", "--json", "-n", "1"))
        prompt = [{"role": "user", "content": PROMPT}]
        tokens = writer.tokenizer.apply_chat_template(prompt, add_generation_prompt=True)
        assert (logged["input_tokens"], logged["output_tokens"]) == (len(tokens), 24)


def test_an_answer_keeps_to_a_schema(home: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 16}, "fins": {"enum": [1, 2, 3]}},
        "required": ["name", "fins"],
    }
    told = json.loads(llm(home, "-m", "fish", "--schema", json.dumps(schema), "Describe a fish."))
    assert isinstance(told["name"], str) and told["fins"] in (1, 2, 3)


def test_tools_may_be_offered(home: Path) -> None:
    """The model decides, and so small a one seldom calls; the command must not fail."""
    code = 'def weather(city: str) -> str:\n    """The weather of a city."""\n    return "Rain."\n'
    asked = ["-m", "fish", "-o", "temperature", "0", "-o", "max_tokens", "24", "--functions", code]
    assert llm(home, *asked, "Will it rain in Oslo?").strip()
