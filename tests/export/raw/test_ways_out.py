"""What is refused names a way out, and the way out works: the lines of docs/tasks.md are run here."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer, models

from shoal.errors import ExportError
from tests import tiny
from tests.conftest import ROOT
from tests.export.raw.served import evidence, served
from tests.export.raw.test_settings import edit

_TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
_PAIR = ("fish swim", "Fish swim in shoals.")


def _run(nth: int, folder: Path, new: Path, **words: str) -> None:
    """A block of Python of the section, with folders for FOLDER and NEW, and other words in place of some."""
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    section = text.split("### Language models that embed and rank")[1].split("## Precisions")[0]
    code = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)[nth]
    for word, other in words.items():
        code = code.replace(word, other)
    exec(code, {"FOLDER": str(folder), "NEW": str(new)})  # noqa: S102


def _refused(folder: Path, work: Path, message: str, **recipe: str) -> str:
    with pytest.raises(ExportError, match=message) as caught, served(folder, work, **recipe):
        pass
    return caught.value.hint


def test_an_embedder_that_puts_texts_into_a_chat_template(tmp_path: Path) -> None:
    folder, new = tiny.make_decoder(tmp_path / "decoder", "Qwen3Model"), tmp_path / "plain"
    edit(folder / "tokenizer_config.json", chat_template=_TEMPLATE)
    transformer = models.Transformer(str(folder))
    assert "message" in transformer.modality_config
    made = SentenceTransformer(modules=[transformer, models.Pooling(64, "lasttoken")], device="cpu")
    made.save(str(tmp_path / "templated"))
    hint = _refused(tmp_path / "templated", tmp_path / "refused", "chat template")
    assert "modality_config.pop" in hint
    _run(0, tmp_path / "templated", new)
    with served(new, tmp_path / "work") as (source, caller):
        assert evidence(source, caller).agreement == 1.0


def test_a_reranker_that_compares_two_tokens(tmp_path: Path) -> None:
    folder = tiny.make_decoder(tmp_path / "decoder", "Qwen3ForCausalLM")
    words = {'["yes", "no"]': '["a", "b"]'}  # which the tiny vocabulary has
    library = CrossEncoder(
        modules=[models.Transformer(str(folder), transformer_task="text-generation"), _scores(folder)],
        device="cpu",
    )
    library.save(str(tmp_path / "writer"))
    assert "docs/tasks.md" in _refused(
        tmp_path / "writer", tmp_path / "refused", "two tokens", task="text-ranking"
    )
    new = tmp_path / "ranker"
    _run(1, tmp_path / "writer", new, **words)
    expected = CrossEncoder(str(tmp_path / "writer"), device="cpu").predict([_PAIR])
    np.testing.assert_allclose(CrossEncoder(str(new), device="cpu").predict([_PAIR]), expected, atol=1e-5)
    with served(new, tmp_path / "work") as (source, caller):
        assert source.task.name == "text-ranking"
        assert evidence(source, caller).agreement == 1.0


def _scores(folder: Path) -> object:
    from sentence_transformers.cross_encoder.modules import LogitScore
    from transformers import AutoTokenizer

    yes, no = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["a", "b"])
    return LogitScore(yes, no)
