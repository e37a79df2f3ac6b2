"""Export a model, and measure a published one again: the same steps for every family of models.

find and open -> build -> measure -> compare answers to raw inputs -> refuse or publish
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime

from export.checkpoint.loading import reason_of
from export.device import require_gpu
from export.evidence import Measured, verified
from export.families import family_of, recipe_in
from export.families import recipe_of as _recipe_of
from export.family import Answers, Compared
from export.outcome import Outcome, tools_of
from export.raw.evidence import RawEvidence
from export.raw.served import Caller, Wire
from export.recipe import Recipe
from export.repository import Provenance, Published, check_kind, write
from serving.onnxruntime.options import FATAL
from shoal import traces
from shoal.errors import ExportError, NotProven, RepositoryError, ShoalError
from shoal.manifest import Damaged, Manifest, history, served_manifests
from shoal.placing import staging
from shoal.progress import Silent
from shoal.repository import network_of, versions_of

OnEvidence = Callable[[Sequence[Measured]], None]


def recipe_of(values: dict[str, Any]) -> Recipe:
    """Settings as the recipe that their source is made for; see `export.families.recipe_of`."""
    with _of_libraries(f"{values.get('source')} cannot be read"):
        return _recipe_of(values)


def export(
    recipe: Recipe,
    repository: Path,
    *,
    progress: Silent | None = None,
    on_evidence: OnEvidence = lambda evidence: None,
) -> Outcome:
    """Export, optimize, quantize, measure, and publish what is proven.

    Args:
        repository: the Triton model repository; made where it does not exist.
        on_evidence: called with all evidence before anything is published or refused.

    Raises:
        UsageError, ExportError: the source cannot be found or turned into ONNX.
        NotProven: no precision reached its tolerance; nothing was written.
        RepositoryError: the repository cannot be written or its disk is full; nothing was changed.
        MissingDependency: an extra is not installed.
    """
    with _of_libraries(f"{recipe.source} cannot be exported"):
        return _export(recipe, repository, progress or Silent(), on_evidence)


def _export(recipe: Recipe, repository: Path, progress: Silent, on_evidence: OnEvidence) -> Outcome:
    family = family_of(recipe)
    require_gpu(recipe.on_gpu)
    open_source = family.find(recipe, progress, eval_data=recipe.eval_data)
    with staging(repository) as work:
        check_kind(repository, recipe.name, recipe.to_dict())
        subject = open_source(work)
        if (published := subject.unmeasured(repository, work)) is not None:
            return Outcome((), (published,), subject.task)
        candidates = subject.build(work, progress)
        evidence = subject.measure(candidates, {}, progress)
        if isinstance(subject, Compared):
            answers = subject.ask_original(work, progress)
            answering = {
                key: partial(subject.in_process, graph, key, work) for key, graph in candidates.items()
            }
            _compare_answers(evidence, recipe.name, answers, answering, progress)
        on_evidence(list(evidence.values()))
        try:
            proven = verified(candidates, evidence)
        except NotProven as error:
            raise NotProven(error.message, hint="; ".join(subject.doubts)) from error
        statistics = subject.statistics(proven, progress)
        provenance = Provenance(recipe.name, recipe.to_dict(), subject.describe(), tools_of(family.tools))
        with progress.step(f"Write versions to {repository}"):
            releases = [
                replace(subject.release(item), reference=statistics.get(item.evidence.precision))
                for item in proven
            ]
            written = write(releases, repository, work, provenance)
    return Outcome(tuple(evidence.values()), tuple(written), subject.task)


def _compare_answers(
    evidence: dict[str, Any],
    model: str,
    answers: Answers,
    answering: Mapping[str, Callable[[], AbstractContextManager[Caller]]],
    progress: Silent,
) -> None:
    """Add to evidence how raw inputs are answered.

    Args:
        evidence: by precision; changed.
        model: the name that users call.
        answering: opens the version of each precision; one is open at a time.
    """
    for precision, opened in progress.each("Compare answers to raw inputs", answering.items()):
        with opened() as caller:
            found = answers.compared(caller, model, precision)
        evidence[precision] = replace(evidence[precision], raw=found)


def verify(
    name: str, repository: Path, *, eval_data: Path | None = None, progress: Silent | None = None
) -> Outcome:
    """Measure the published versions of a model again, against what they were made from.

    Raises:
        RepositoryError: there is no such model, a manifest cannot be read, its files are not those that were
            measured, or its source is not what it was made from.
    """
    for entry in history(repository, name):
        if isinstance(entry, Damaged):
            raise entry.error
    every = versions_of(repository, name)
    network = network_of(repository, name, every)
    found = [manifest for (model, _), manifest in every.items() if model == network]
    for manifest in found:
        manifest.check_files(repository)
    evidence: list[Any] = []
    with _of_libraries(f"{name} cannot be measured"):
        for versions in _together(found):
            task, measured = _measured(versions, repository, eval_data, progress or Silent())
            evidence += measured
    published = [Published(m.network, m.version, m.precision, new=False) for m in found]
    return Outcome(tuple(evidence), tuple(published), task)


def _together(found: Sequence[Manifest]) -> list[list[Manifest]]:
    """Versions that are measured beside each other: of one recipe, each in another precision."""
    groups: list[list[Manifest]] = []
    for manifest in found:
        group = groups[-1] if groups else []
        alike = bool(group) and group[0].recipe == manifest.recipe
        if alike and manifest.precision not in {other.precision for other in group}:
            group.append(manifest)
        else:
            groups.append([manifest])
    return groups


def _measured(
    versions: Sequence[Manifest], repository: Path, eval_data: Path | None, progress: Silent
) -> tuple[str, list[Any]]:
    """Task and evidence of versions of one recipe."""
    recipe = recipe_in(versions[-1])
    published = {manifest.precision: manifest for manifest in versions}
    require_gpu([precision for precision in published if precision in recipe.on_gpu])
    open_source = family_of(recipe).find(recipe, progress, eval_data=eval_data, versions=versions)
    with TemporaryDirectory() as folder:
        subject = open_source(Path(folder))
        graphs = {key: subject.published(manifest, repository) for key, manifest in published.items()}
        evidence = subject.measure(graphs, published, progress)
        if isinstance(subject, Compared):
            answering = {
                key: partial(subject.published_in_process, published[key], repository, graph)
                for key, graph in graphs.items()
            }
            answers = subject.ask_original(None, progress)
            _compare_answers(evidence, versions[-1].model, answers, answering, progress)
    if missing := [precision for precision, entry in evidence.items() if entry.raw is None]:
        raise NotProven(f"{', '.join(missing)}: no answer to a raw input was compared")
    return subject.task, list(evidence.values())


def verify_wire(
    name: str, repository: Path, address: str, *, progress: Silent | None = None
) -> tuple[Manifest, RawEvidence]:
    """Compare what a running server answers to raw inputs with what the original library answers.

    Args:
        address: host:port of its gRPC endpoint.

    Returns:
        The version that is served, and its figures.

    Raises:
        RepositoryError: there is no such model, or its source is not what it was made from.
    """
    progress = progress or Silent()
    served = list(served_manifests(repository, name))
    if not served:
        raise RepositoryError(f"{repository} serves no version of {name}", hint=f"shoal export --name {name}")
    manifest = served[-1]
    with _of_libraries(f"{name} cannot be measured"), TemporaryDirectory() as folder:
        recipe = recipe_in(manifest)
        open_source = family_of(recipe).find(recipe, progress, eval_data=None, versions=[manifest])
        subject = open_source(Path(folder))
        subject.published(manifest, repository)
        answers = subject.ask_original(None, progress)
        with Wire(address) as caller, progress.step(f"Ask {manifest.model} over the wire"):
            return manifest, answers.compared(caller, manifest.model, manifest.precision)


@contextmanager
def _of_libraries(failed: str) -> Iterator[None]:
    """What a library raises where nobody expects it, as an `ExportError`: what is ours stays a defect."""
    onnxruntime.set_default_logger_severity(FATAL)
    try:
        yield
    except (ShoalError, OSError, MemoryError):
        raise
    except Exception as error:
        if not traces.is_foreign(error):
            raise
        raise ExportError(f"{failed}: {reason_of(error)}") from error
