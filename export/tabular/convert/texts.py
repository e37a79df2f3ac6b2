"""Bags of words: the terms are counted before the graph, by `serving.models.terms`, and weighed in it."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfTransformer,
    TfidfVectorizer,
)

from export.tabular.convert.graph import (
    Dense,
    Document,
    Graph,
    Sparse,
    Table,
    Unsupported,
    matrix,
    width,
)
from export.tabular.convert.preprocessing import normed
from export.tabular.convert.registry import Context, transformer
from serving.models.terms import ACCENTS, ANALYZERS, Terms, inputs_of


@transformer(CountVectorizer)
def _counts(context: Context, part: CountVectorizer, table: Table) -> Table:
    order = sorted(part.vocabulary_, key=part.vocabulary_.__getitem__)
    return _counted(context, part, table, tuple(order), len(order), signed=False)


@transformer(TfidfVectorizer)
def _tfidf(context: Context, part: TfidfVectorizer, table: Table) -> Table:
    (block,) = _counts(context, part, table)
    return (_weighed(context.graph, block, part._tfidf),)


@transformer(HashingVectorizer)
def _hashed(context: Context, part: HashingVectorizer, table: Table) -> Table:
    (block,) = _counted(context, part, table, (), part.n_features, signed=part.alternate_sign)
    return (Sparse(block.indices, normed(context.graph, block.values, part.norm), block.width),)


@transformer(TfidfTransformer)
def _transformer(context: Context, part: TfidfTransformer, table: Table) -> Table:
    graph = context.graph
    if len(table) == 1 and isinstance(table[0], Sparse):
        return (_weighed(graph, table[0], part),)
    counts = matrix(graph, table)
    if part.sublinear_tf:
        counts = _sublinear(graph, counts)
    if part.use_idf:
        counts = graph.op("Mul", counts, part.idf_[None])
    return (Dense(normed(graph, counts, part.norm), width(table)),)


def _weighed(graph: Graph, block: Any, part: TfidfTransformer) -> Sparse:
    values = _sublinear(graph, block.values) if part.sublinear_tf else block.values
    if part.use_idf:
        each = graph.op("Gather", [*part.idf_, 0.0], block.indices)
        values = graph.op("Mul", values, each)
    return Sparse(block.indices, normed(graph, values, part.norm), block.width, block.held)


def _sublinear(graph: Graph, counts: str) -> str:
    none = graph.op("Equal", counts, 0.0)
    raised = graph.op("Add", graph.op("Log", graph.where(none, 1.0, counts)), 1.0)
    return graph.where(none, 0.0, raised)


def _counted(
    context: Context, part: Any, table: Table, vocabulary: tuple[str, ...], columns: int, *, signed: bool
) -> tuple[Sparse]:
    if len(table) != 1 or not isinstance(table[0], Document):
        raise Unsupported(f"{type(part).__name__} reads something else than a column of texts")
    settings = {"tokenizer": part.tokenizer, "preprocessor": part.preprocessor, "analyzer": part.analyzer}
    for name, value in (settings | {"strip_accents": part.strip_accents}).items():
        if callable(value):
            raise Unsupported(
                f"{type(part).__name__}({name}={getattr(value, '__name__', value)}) runs Python code, "
                "which no graph holds",
                hint="say it with token_pattern, lowercase, strip_accents, stop_words and ngram_range",
            )
    if part.input != "content" or part.analyzer not in ANALYZERS:
        raise Unsupported(f"{type(part).__name__}(input={part.input!r}) reads files", hint="input='content'")
    terms = Terms(
        table[0].column,
        part.analyzer,
        part.lowercase,
        part.strip_accents if part.strip_accents in ACCENTS else "",
        part.token_pattern if part.analyzer == "word" else "",
        (int(part.ngram_range[0]), int(part.ngram_range[1])),
        tuple(sorted(part.get_stop_words() or ())) if part.analyzer == "word" else (),
        vocabulary,
        columns,
        signed,
        part.binary,
    )
    graph, number = context.graph, len(context.texts)
    context.texts.append(terms)
    indices, counts = inputs_of(number)
    # Texts of two columns have different numbers of terms.
    most = f"terms_{number}"
    given = graph.input(counts, TensorProto.FLOAT, most)
    found = graph.input(indices, TensorProto.INT64, most)
    return (Sparse(found, graph.cast(given, TensorProto.DOUBLE), columns),)
