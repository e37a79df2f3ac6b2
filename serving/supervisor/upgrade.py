"""A repository that changes while it is served: new versions are tried out, then loaded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError

import psutil

from serving import embedded, probe
from serving.embedded import Server
from serving.supervisor.logs import say
from serving.supervisor.view import Shown, View, shown_in
from serving.supervisor.watch import LOOK_SECONDS, Watch
from shoal.errors import RepositoryError, ServerError, ShoalError

FOLLOW_SECONDS = 1.0  # between two looks at the repository
RETRY_SECONDS = 30.0  # what could not be taken up may be repaired, or may have met a busy machine
SETTLE_SECONDS = 10.0  # for which Triton may not know the config of what it lets go


class Upgrades:
    """Follows a repository for a running server, so that `shoal promote` needs no restart.

    What has changed is started in a server of its own first, where its files are compared with their
    manifests and each model must answer. Only then the one that serves is told to load it: Triton takes down
    an ensemble whose steps do not fit. What fails is told once, and tried again.

    Args:
        repository: the model repository.
        launch: starts a server on free ports that reads what the given function makes in a folder; see
            `serving.embedded.launch`.
        headers: for endpoints that are closed.
        timeout: seconds in which new versions must be loaded.
        watch: begins to watch a server, without these processes that leave it.
        told: called after each change: whether it was refused.
    """

    def __init__(
        self,
        repository: Path,
        launch: Callable[[Callable[[Path], Path]], Server],
        headers: Mapping[str, str],
        timeout: float,
        *,
        watch: Callable[[Server, Collection[psutil.Process]], Watch],
        told: Callable[[bool], None],
    ) -> None:
        self.view = View(repository)
        self._repository, self._launch = repository, launch
        self._headers, self._timeout = headers, timeout
        self._watch, self._told = watch, told
        self._refused: dict[str, Shown] | None = None
        self._said = ""
        self._next = self._retry = 0.0

    def look(self, server: Server, watch: Watch) -> Watch:
        """Take up what has changed in the repository, if anything has; the watch to go on with.

        Raises:
            OSError, ValueError, http.client.HTTPException: the server does not answer any more.
        """
        if time.monotonic() < self._next:
            return watch
        self._next = time.monotonic() + FOLLOW_SECONDS
        if (found := self._news()) is None:
            return watch
        try:
            tried = self._tried(watch, found)
        except ShoalError as error:
            self._end(found, error)
            return watch
        if not tried or self._found() != found:  # nobody serves, or it is being written
            return watch
        return self._switch(server, watch, found)

    def _news(self) -> dict[str, Shown] | None:
        """What the repository shows, if that is to be taken up now."""
        found = self._found()
        if found == self.view.shown:
            if self._refused is not None:  # it is back to what is served
                self._end(found, None)
            return None
        return None if found == self._refused and time.monotonic() < self._retry else found

    def _found(self) -> dict[str, Shown] | None:
        try:
            return shown_in(self._repository)
        except (OSError, ValueError):  # between two renames
            return None

    def _tried(self, watch: Watch, found: Mapping[str, Shown]) -> bool:
        """Try out what has changed, while the server is looked after; False: that does not serve any more.

        Raises:
            ShoalError: it is not what was measured, or does not serve.
        """
        if not found:
            raise RepositoryError(f"{self._repository} holds no models any more")
        changed = self.view.changed(found) & found.keys()
        needed = changed.union(*(found[name].steps for name in changed)) & found.keys()
        if not needed:  # models are let go, and that is all
            return True
        say("trying new versions", models=sorted(needed))

        def run() -> None:
            trial = View(self._repository)
            part = {name: found[name] for name in needed}
            embedded.stop(self._launch(lambda folder: trial.open(folder, part)))

        return _done(run, watch)

    def _switch(self, server: Server, watch: Watch, found: dict[str, Shown]) -> Watch:
        start = time.monotonic()
        before, changed = self.view.shown, self.view.changed(found)
        leaving = watch.let_go(changed)
        refused, served = None, True
        try:
            served = _done(lambda: self._take(server, found, changed), watch)
        except ShoalError as error:
            refused = error
            with suppress(ShoalError):  # what is not back is asked for an answer, as all models are
                served = _done(lambda: self._take(server, before, changed), watch)
        if not served:
            return watch
        renewed = self._renewed(server, watch, leaving)
        self._end(found, refused)
        if refused is None:
            say("serving new versions", seconds=round(time.monotonic() - start, 2), models=sorted(changed))
        return renewed

    def _take(self, server: Server, shown: dict[str, Shown], changed: Collection[str]) -> None:
        """Have the server serve what is shown: first the steps, then the ensembles of them."""
        self.view.show(shown)
        for name in sorted(changed, key=lambda name: (name in shown and bool(shown[name].steps), name)):
            action = "load" if name in shown else "unload"
            probe.control(server.http, name, action, timeout=self._timeout, headers=self._headers)

    def _renewed(self, server: Server, watch: Watch, leaving: Collection[psutil.Process]) -> Watch:
        """A watch of what is served now."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                renewed = self._watch(server, leaving)
            except HTTPError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_SECONDS)
            else:
                watch.close()
                return renewed

    def _end(self, found: dict[str, Shown], error: ShoalError | None) -> None:
        self._refused = found if error else None
        self._retry = time.monotonic() + RETRY_SECONDS
        self._told(error is not None)
        if error and error.message != self._said:
            say(f"not taken up: {error.message}", level="error", hint=error.hint or "shoal rollback")
        self._said = error.message if error else ""


def _done(run: Callable[[], None], watch: Watch) -> bool:
    """Run what takes its time while the server is looked after; False: that does not serve any more.

    Raises:
        ShoalError: it failed.
    """
    failed: list[Exception] = []

    def kept() -> None:
        try:
            run()
        except Exception as error:  # noqa: BLE001 - raised below, where somebody hears it
            failed.append(error)

    thread = threading.Thread(target=kept, daemon=True)
    thread.start()
    while thread.is_alive():
        if watch.problem():
            return False
        thread.join(LOOK_SECONDS)
    if failed:
        error = failed[0]
        raise error if isinstance(error, ShoalError) else ServerError(probe.reason_of(error))
    return True
