"""Which versions are wanted, tried, served, and last good: a state machine, kept on disk.

It knows neither Triton nor processes: the loop tells it what happened, and asks it what to do. Models change
in groups: an ensemble with its steps, and whatever shares a step with it. The states of a group:

    served as desired --(the repository shows something else)--> desired
    desired  --attempt--> trying --tried--> taking --taken--> served, and last good
    trying, taking --refused--> refused: the last good goes on
    refused  --(the repository changes, it is asked for again, or RETRY_SECONDS have passed)--> desired

After a start the last good versions are served, whatever was refused before; what else is desired is tried
after that, as any change is. Each transition is on disk before the next begins, so that a kill loses none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.supervisor.snapshot import ModelSpec
from shoal.errors import ShoalError, in_one_line
from shoal.paths import write_json

SCHEMA = 1
RETRY_SECONDS = 30.0  # what was refused may be repaired, or may have met a busy machine
Models = dict[str, ModelSpec]


@dataclass(frozen=True)
class Attempt:
    """A change of one group.

    Attributes:
        target: what the models of the group are to be; a model that is let go is missing.
        before: what they are.
    """

    target: Mapping[str, ModelSpec]
    before: Mapping[str, ModelSpec]

    @property
    def names(self) -> frozenset[str]:
        """Names of all models in it."""
        return frozenset({*self.target, *self.before})

    @property
    def changed(self) -> frozenset[str]:
        """Models that are loaded, loaded again or let go: those that differ, and ensembles of them."""
        differ = {name for name in self.names if self.target.get(name) != self.before.get(name)}
        return frozenset(differ | {name for name, model in self.target.items() if differ & model.steps})


@dataclass(frozen=True)
class Refusal:
    """Why a group is not what is desired.

    Attributes:
        names: of all models in the group, those included that are let go.
        target: what was refused.
        reason: in a sentence.
        retry: when it is tried again, on the loop's clock.
        asked: when it had been asked for last, in seconds since 1970.
    """

    names: frozenset[str]
    target: Mapping[str, ModelSpec]
    reason: str
    retry: float
    asked: float


@dataclass
class Rollout:
    """The state machine.

    Args:
        path: of its file.
        clock: seconds, monotonic.

    Attributes:
        desired: what the repository shows.
        served: what the server has loaded.
        good: what was served last of each group with every model answering; survives the server.
        trying: what is tried out or taken up now.
        refused: of groups that are not what is desired.
        draining: model -> its earlier versions that still end their requests.
    """

    path: Path
    clock: Callable[[], float]
    desired: Models = field(default_factory=dict)
    served: Models = field(default_factory=dict)
    good: Models = field(default_factory=dict)
    trying: Attempt | None = None
    refused: list[Refusal] = field(default_factory=list)
    draining: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, clock: Callable[[], float]) -> Rollout:
        """Go on from the file, or begin where there is none that can be read.

        Nothing is served yet; what was tried is to be tried again.
        """
        made = cls(path, clock)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["schema"] == SCHEMA:
                made.good = _models(kept["good"])
                made.refused = [
                    Refusal(
                        frozenset(map(str, entry["models"])),
                        _models(entry["target"]),
                        str(entry["reason"]),
                        clock() + RETRY_SECONDS,
                        float(entry.get("asked", 0.0)),
                    )
                    for entry in kept["refused"]
                ]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            made.good, made.refused = {}, []
        return made

    def see(self, found: Models) -> None:
        """The repository shows this now."""
        before = self.desired, self.refused
        self.desired = dict(found)
        self.refused = [refusal for refusal in self.refused if self.is_desired(refusal)]
        if (self.desired, self.refused) != before:
            self.save()

    def first(self) -> Models:
        """What to load into a server that starts: the last good, and what is desired of groups without.

        Of a group that the repository does not hold as a whole any more, nothing was good.
        """
        kept = [names for names in groups(self.good) if names <= self.desired.keys()]
        start = {name: self.good[name] for names in kept for name in names}
        for names in groups(self.desired):
            if not names & start.keys():
                start |= {name: self.desired[name] for name in names}
        return start

    def choose(self, check: Callable[[Models], None]) -> tuple[Models, list[ShoalError]]:
        """What to load into a server that starts: of `first` what passes a check, or what else does.

        Args:
            check: raises ShoalError where models are not what was measured.

        Returns:
            The models, and why others are refused, where that is news.
        """
        chosen: Models = {}
        news = []
        start = self.first()
        for names in groups(start):
            group = {name: start[name] for name in names}
            for models in filter(None, (group, self.instead(group))):
                try:
                    check(models)
                except ShoalError as error:
                    if self.refuse(models, models, error.message):
                        news.append(error)
                else:
                    chosen |= models
                    break
        return chosen, news

    def instead(self, wrong: Mapping[str, ModelSpec]) -> Models:
        """What may be loaded where these models of a group cannot: what is desired of it; {}: nothing."""
        chosen = {name for group in groups(self.desired) if group & wrong.keys() for name in group}
        other = {name: self.desired[name] for name in chosen}
        return {} if other == dict(wrong) else other

    def started(self, loaded: Models) -> None:
        """A server has started, and these models answer."""
        self.served = dict(loaded)
        # Of a group that could not be loaded the last good stays, while the repository still has it.
        kept = [names for names in groups(self.good) if names <= self.desired.keys() - loaded.keys()]
        self.good = {name: self.good[name] for names in kept for name in names} | loaded
        self.draining = {}
        self.trying = None
        self.refused = [
            refusal
            for refusal in self.refused
            if self.is_desired(refusal)
            and any(loaded.get(name) != self.desired.get(name) for name in refusal.names)
        ]
        self.save()

    def ended(self) -> None:
        """The server is gone."""
        self.served, self.draining, self.trying = {}, {}, None
        self.save()

    def attempt(self) -> Attempt | None:
        """The next group to change, which is being tried from now on; None: all is as desired, or refused.

        What was refused is tried again after what was not, and the longest ago first: a group that is refused
        for ever holds up no other.
        """
        found: list[tuple[float, Attempt]] = []
        for names in groups(self.desired, self.served):
            target = {name: self.desired[name] for name in names if name in self.desired}
            before = {name: self.served[name] for name in names if name in self.served}
            if target == before:
                continue
            retry = max((entry.retry for entry in self.refused if entry.names & names), default=-math.inf)
            known = any(
                entry.names == names and entry.target == target and entry.asked >= _asked(target)
                for entry in self.refused
            )
            if not known or self.clock() >= retry:
                found.append((retry if known else -math.inf, Attempt(target, before)))
        if not found:
            return None
        self.trying = min(found, key=lambda entry: entry[0])[1]
        self.save()
        return self.trying

    def taken(self, attempt: Attempt) -> None:
        """The server has loaded a group, and its models answer."""
        for name in attempt.changed & attempt.before.keys():
            earlier = {*self.draining.get(name, ()), *attempt.before[name].versions}
            self.draining[name] = tuple(sorted(earlier))
        # Made anew and not changed in place: who asks for the catalogue reads `served` from another thread.
        self.served, self.good = (
            {name: model for name, model in models.items() if name not in attempt.names}
            | dict(attempt.target)
            for models in (self.served, self.good)
        )
        self.trying = None
        self.refused = [refusal for refusal in self.refused if not refusal.names & attempt.names]
        self.save()

    def refuse(self, names: Collection[str], target: Mapping[str, ModelSpec], reason: str) -> bool:
        """A group cannot be what is desired.

        Args:
            names: of all its models, those included that are let go.

        Returns:
            Whether that is news.
        """
        group, reason = frozenset(names), in_one_line(reason)
        known = [refusal for refusal in self.refused if refusal.names & group]
        self.refused = [refusal for refusal in self.refused if refusal not in known]
        # What was good before a start does not say when it was asked for.
        asked = _asked(target) or _asked({name: self.desired[name] for name in group & self.desired.keys()})
        retry = self.clock() + RETRY_SECONDS
        self.refused.append(Refusal(group, dict(target), reason, retry, asked))
        self.trying = None
        self.save()
        return not any(entry.target == dict(target) and entry.reason == reason for entry in known)

    def drains(self, models: Collection[str]) -> None:
        """Earlier versions of these models still end their requests, and of no others."""
        found = {name: versions for name, versions in self.draining.items() if name in models}
        if found != self.draining:
            self.draining = found
            self.save()

    @property
    def missing(self) -> set[str]:
        """Models that were served, are still to be, and are not, in no version."""
        return (self.good.keys() & self.desired.keys()) - self.served.keys()

    @property
    def held(self) -> set[tuple[str, int]]:
        """Versions that must stay in the repository: served, last good, tried, and those that drain."""
        trying = self.trying.target if self.trying else {}
        held = {
            (name, version)
            for models in (self.served, self.good, trying)
            for name, model in models.items()
            for version in model.versions
        }
        return held | {(name, version) for name, versions in self.draining.items() for version in versions}

    def phase(self, name: str) -> str:
        """Where a model is: `served`, `trying`, `refused`, `desired`, or `gone`."""
        wanted, now = self.desired.get(name), self.served.get(name)
        if wanted == now:
            return "gone" if wanted is None else "served"
        if self.trying is not None and name in self.trying.names:
            return "trying"
        return "refused" if self._refusal_of(name) else "desired"

    def reason(self, name: str) -> str:
        """Why a model is refused; "": it is not."""
        refusal = self._refusal_of(name)
        return refusal.reason if refusal else ""

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return {
            "schema": SCHEMA,
            "desired": _plain(self.desired),
            "served": _plain(self.served),
            "good": _plain(self.good),
            "trying": None if self.trying is None else _plain(self.trying.target),
            "refused": [
                {
                    "models": sorted(entry.names),
                    "target": _plain(entry.target),
                    "reason": entry.reason,
                    "asked": entry.asked,
                }
                for entry in self.refused
            ],
            "draining": {name: list(versions) for name, versions in self.draining.items()},
        }

    def save(self) -> None:
        """Write the file; a full disk does not end what is served."""
        try:
            write_json(self.path, self.to_dict())
        except OSError:
            return

    def _refusal_of(self, name: str) -> Refusal | None:
        return next((refusal for refusal in self.refused if name in refusal.names), None)

    def is_desired(self, of: Refusal | Attempt) -> bool:
        """Whether the repository still shows what a group was to become."""
        return all(self.desired.get(name) == of.target.get(name) for name in of.names)


def groups(*shown: Mapping[str, ModelSpec]) -> list[frozenset[str]]:
    """Models that change together: ensembles with their steps in any of these, and all that share one."""
    found: list[set[str]] = []
    for models in shown:
        for name, model in models.items():
            joined = {name, *model.steps}
            apart = []
            for group in found:
                if group & joined:
                    joined |= group
                else:
                    apart.append(group)
            found = [*apart, joined]
    known = {name for models in shown for name in models}
    return sorted((frozenset(group & known) for group in found), key=min)


def _asked(target: Mapping[str, ModelSpec]) -> float:
    """When one of these was asked for last: `shoal promote` touches the configs of all, changed or not."""
    return max((model.asked for model in target.values()), default=0.0)


def _plain(models: Mapping[str, ModelSpec]) -> dict[str, Any]:
    return {
        name: {"config": model.config, "versions": list(model.versions)} for name, model in models.items()
    }


def _models(values: Mapping[str, Any]) -> Models:
    return {
        str(name): ModelSpec(str(model["config"]), tuple(int(version) for version in model["versions"]))
        for name, model in values.items()
    }
