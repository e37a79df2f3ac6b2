"""The search for the setting with the highest rate within a promise, honest on a noisy machine.

Rates are open loop, so queueing counts. When requests happen to come close to each other decides much of
what a short test says, so all tests of a search have the same requests at the same times, stretched to
their rate (common random numbers). What is served now is measured twice first, or three times (A/A): the
difference is noise. Then settings race against the best so far: each is asked once at a little more than that
rate, and one that keeps the promise there is asked for more, so most cost one test. Optuna's tree-structured
Parzen estimator (J. Bergstra et al., Algorithms for hyper-parameter optimization, NeurIPS 2011) proposes
them, after the corners of the space; once a setting is the best so far, corners and others change it in one
knob.

At last the best must win on fresh requests, in turn with what is served now (ABBA, so that a machine which
gets slower slows both), first at a rate between both. It wins a round if it keeps the promise and what is
served now misses it; if both keep it, the next round has a higher rate, and if both miss it, a lower one.
It must win several rounds before it loses one. Otherwise the answer is that there is no difference.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna

from loadtest.tuning.found import Found, Judged, Tried
from loadtest.tuning.space import Setting, Space
from shoal.errors import ShoalError, UsageError
from shoal.paths import write_json

AHEAD = 1.04  # a setting is first asked for so much more than the best so far
STEP = 1.15  # a setting that keeps the promise is asked for so much more
NEAR = 1.05  # and then between, until its bounds are so near
FIRST_RATE, LEAST_RATE = 8.0, 0.05
# Between rates, until one keeps the promise and one misses it; the next time it is squared, up to the second.
FACTOR, MOST_FACTOR = 1.25, 2.0
# So many of the rounds at the end are to be won, of at most so many, and none lost. Of two equal settings,
# each of which keeps the promise every other round whatever the other does, one in 25 would be called better.
WINS, MOST_ROUNDS = 4, 8
SHARE_TO_CONFIRM = 0.35  # of the budget is kept for them
OVER = 1.25  # times the budget are not exceeded
FRESH = 1000  # the numbers of their requests begin here
NOISY = 1.5  # as a ratio of two measurements of the same
_SAMPLED_IN_VAIN = 50


Measure = Callable[[Setting, float, int], Judged]  # the same number gives the same requests


class NothingMeets(ShoalError):
    """What is served now keeps the promise at no rate."""


class ServedNowFails(ShoalError):
    """What is served now could not be tested in turn with another setting."""


class Search:
    """One search.

    Args:
        space: see there.
        measure: a test of a setting at a rate; its third argument says which requests it gets.
        seconds: the budget.
        about: what else makes this search another one: the promise, the load, the files, the machine.
        journal: what was done so far, to go on with after an interruption, or what was found.
        seed: of the proposals.
        say: is told each step, in a line.
        clock: seconds.
        guess: is asked once for a rate that what is served now can about keep, to begin there.
    """

    def __init__(
        self,
        space: Space,
        measure: Measure,
        seconds: float,
        journal: Path,
        *,
        about: dict[str, Any] | None = None,
        seed: int = 0,
        say: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
        guess: Callable[[], float] = lambda: FIRST_RATE,
    ) -> None:
        self._space, self._measure, self._seconds = space, measure, seconds
        self._journal, self._seed, self._say, self._clock = journal, seed, say, clock
        self._told, self._guess = about or {}, guess
        self._number = 1 + seed
        self.found = Found()

    def run(self, first: Callable[[], Sequence[str]] = tuple, *, again: bool = True) -> Found:
        """Search until the budget is used up, and confirm.

        Args:
            again: whether a search that has ended is made anew; else what won is given, if something did.
            first: asked once what is served now has been measured: models whose knobs are tried first.

        Raises:
            NothingMeets: see there.
            UsageError: the journal is of another search.
            ShoalError: the budget was too short to try a setting, or none could be tested.
            ServedNowFails: see there.
        """
        begun = self._clock()
        if self._resume():
            if not again and self.found.winner is not None:
                return self.found
            self.found = Found()
        same = self.found.same
        while len(same) < 2 or (len(same) == 2 and self.found.noise > NOISY):
            same.append(self._again() if same else self._first())
            self._say(f"served now: {same[-1]:.1f} requests/s, measurement {len(same)}")
            self._keep()
        until = begun + self._seconds * (1 - SHARE_TO_CONFIRM)
        if self.found.noise > NOISY:
            ratio = f"{self.found.noise:.1f} times as fast once as another time"
            self._say(f"warning: what is served now was {ratio}: this machine is not quiet")
        self._explore(self._space.corners(first()), until)
        if not self.found.tried:
            raise ShoalError(
                f"the budget of {self._seconds:.0f} s is over before a setting was tried: to measure what is"
                f" served now took {self._clock() - begun:.0f} s",
                hint="the same command with a longer --budget goes on from there",
            )
        if all(tried.rate is None for tried in self.found.tried):
            raise ShoalError(
                f"none of {len(self.found.tried)} settings could be tested: {self.found.tried[-1].error}",
                hint="remove the journal once that is mended, and begin anew",
            )
        self._confirm(begun + self._seconds * OVER)
        self._keep(ended=True)
        return self.found

    def _first(self) -> float:
        return self.highest(self._space.default, self._guess())

    def _again(self) -> float:
        """Near the best result, and from below it, so that it can be lower as well as higher."""
        return self.highest(self._space.default, self.found.base / NEAR, NEAR**2)

    def _explore(self, corners: Sequence[Setting], until: float) -> None:
        study = self._study()
        waiting, vain = list(corners), 0
        while self._clock() < until and vain < _SAMPLED_IN_VAIN:
            if waiting:
                study.enqueue_trial(waiting.pop(0))
            trial = study.ask(self._distributions())
            setting = dict(trial.params)
            known = next((tried for tried in self.found.tried if tried.setting == setting), None)
            if known is not None or setting == self._space.default:
                value = known.rate if known is not None else self.found.base
                study.tell(trial, value, state=None if value is not None else optuna.trial.TrialState.FAIL)
                vain += 1
                continue
            vain = 0
            tried = self._race(setting)
            self.found.tried.append(tried)
            self._keep()
            state = optuna.trial.TrialState.FAIL if tried.rate is None else None
            study.tell(trial, tried.rate, state=state)
            if tried.kept:  # the best so far
                # What is good with one knob may be so only with another: the rest starts from here.
                waiting = [self._onto(setting, each) for each in waiting] + self._space.neighbours(setting)

    def _onto(self, best: Setting, other: Setting) -> Setting:
        """The best, changed in those knobs in which another setting differs from what is served now."""
        default = self._space.default
        return {**best, **{name: value for name, value in other.items() if value != default[name]}}

    def _study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=self._seed, n_startup_trials=5)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        done = [(self._space.default, self.found.base)]
        done += [(tried.setting, tried.rate) for tried in self.found.tried if tried.rate is not None]
        for setting, rate in done:
            made = optuna.trial.create_trial(params=setting, distributions=self._distributions(), value=rate)
            study.add_trial(made)
        return study

    def _distributions(self) -> dict[str, Any]:
        return {
            knob.name: optuna.distributions.CategoricalDistribution(knob.values) for knob in self._space.knobs
        }

    def _best(self) -> float:
        return max(
            [self.found.base, *(tried.rate for tried in self.found.tried if tried.kept and tried.rate)]
        )

    def _race(self, setting: Setting) -> Tried:
        """Whether a setting beats the best so far, and by how much."""
        tried, rate = Tried(setting, None, False, 0), AHEAD * self._best()
        try:
            judged = self._test(tried, rate)
            if not judged.met:
                tried.rate, tried.asked = rate * min(judged.goodput, 1 / AHEAD), rate
                self._say(
                    f"{self._space.text(setting)}: {judged.goodput:.1%} within at {rate:.1f} requests/s"
                )
                return tried
            low, high = rate, None
            while high is None or high > NEAR * low:
                asked = STEP * low if high is None else (low * high) ** 0.5
                if self._test(tried, asked).met:
                    low = asked
                else:
                    high = asked
        except ShoalError as error:
            tried.error = error.message
            self._say(f"{self._space.text(setting)}: failed: {error.message}")
            return tried
        tried.rate, tried.asked, tried.kept = low, high, True
        self._say(f"{self._space.text(setting)}: {low:.1f} requests/s, the best so far")
        return tried

    def _test(self, tried: Tried, rate: float) -> Judged:
        tried.tests += 1
        return self._ask(tried.setting, rate)

    def _ask(self, setting: Setting, rate: float, number: int | None = None) -> Judged:
        judged = self._measure(setting, rate, self._number if number is None else number)
        self.found.client_limited += judged.client_limited
        return judged

    def highest(self, setting: Setting, rate: float, factor: float = FACTOR) -> float:
        """The highest rate at which a setting keeps the promise, to 5 %.

        Args:
            rate: where to begin.
            factor: to the next rate; the nearer the guess, the less.

        Raises:
            NothingMeets: it keeps the promise at none.
            ShoalError: it cannot be tested.
        """
        low = high = None
        nearest = 0.0
        while rate >= LEAST_RATE and (low is None or high is None or high > NEAR * low):
            judged = self._ask(setting, rate)
            nearest = max(nearest, judged.goodput)
            if judged.met:
                low = rate
            else:
                high = rate
                if low is None and judged.alone:  # a lower rate would change nothing
                    break
            if low is not None and high is not None:
                rate = (low * high) ** 0.5
            else:
                lower = rate / factor if rate <= LEAST_RATE else max(rate / factor, LEAST_RATE)
                rate = rate * factor if high is None else lower
                factor = min(factor * factor, MOST_FACTOR)
        if low is None:
            raise NothingMeets(
                f"no rate keeps the promise; at the best {nearest:.1%} of the requests were within it",
                hint="promise less",
            )
        return low

    def _confirm(self, until: float) -> None:
        """The best that is better than noise, and then the next one."""
        candidates = sorted(
            (tried for tried in self.found.tried if tried.kept and tried.rate),
            key=lambda tried: tried.rate or 0.0,
            reverse=True,
        )
        for tried in candidates[:2]:
            assert tried.rate is not None  # noqa: S101 - as chosen above
            if tried.rate <= self.found.base * self.found.noise:
                continue
            try:
                rounds = self._in_turn(tried.setting, tried.rate, until)
            except ServedNowFails:
                raise
            except ShoalError as error:
                tried.kept, tried.error = False, error.message
                self._say(f"confirming {self._space.text(tried.setting)}: failed: {error.message}")
                continue
            won = [row["rate"] for row in rounds if row["kept"] and not row["served_now_kept"]]
            self.found.confirmed.append(
                {"setting": tried.setting, "rate": min(won, default=None), "rounds": rounds}
            )
            said = f"won {len(won)} of {len(rounds)} rounds"
            self._say(f"confirming {self._space.text(tried.setting)}: {said}")
            if len(won) >= WINS:
                self.found.winner = tried.setting
                self.found.fresh = self._fresh(tried.setting, tried.rate, max(won), until)
                return

    def _fresh(self, setting: Setting, highest: float, won: float, until: float) -> float:
        """The highest rate that a winner keeps on requests that chose nothing, to 5 %.

        Args:
            highest: at which it was found.
            won: at which it won a round, which is what is told where it cannot be tested any more.
            until: after which no test begins.
        """
        number = FRESH * (1 + self._seed) + MOST_ROUNDS
        try:
            while highest > won and self._clock() < until:
                if self._ask(setting, highest, number).met:
                    return highest
                highest /= NEAR
        except ShoalError as error:
            self._say(f"measuring {self._space.text(setting)} again: failed: {error.message}")
        return won

    def _in_turn(self, setting: Setting, highest: float, until: float) -> list[dict[str, Any]]:
        """Rounds of a setting and what is served now, each on fresh requests, the same for both.

        Args:
            highest: the rate at which the setting kept the promise before.
            until: after which no round begins.
        """
        base = self.found.base
        rate, step = (highest * base) ** 0.5, (highest / base) ** 0.25
        rounds: list[dict[str, Any]] = []
        won = 0
        while won < WINS and len(rounds) < MOST_ROUNDS and self._clock() < until:
            sides = [setting, self._space.default]
            number = FRESH * (1 + self._seed) + len(rounds)
            met: dict[bool, bool] = {}
            for side in sides if len(rounds) % 2 == 0 else sides[::-1]:
                try:
                    met[side is setting] = self._ask(side, rate, number).met
                except ShoalError as error:
                    if side is setting:
                        raise
                    raise ServedNowFails(
                        f"what is served now could not be tested: {error.message}", hint=error.hint
                    ) from error
            rounds.append({"rate": rate, "kept": met[True], "served_now_kept": met[False]})
            if met[False] and not met[True]:
                break
            won += met[True] and not met[False]
            if met[True] == met[False]:
                rate = rate * step if met[True] else rate / step
        return rounds

    def _about(self) -> dict[str, Any]:
        knobs = {knob.name: [*knob.values, knob.default] for knob in self._space.knobs}
        files = {number: manifest.files for number, manifest in self._space.manifests.items()}
        about = {"model": self._space.model, "knobs": knobs, "files": files, **self._told}
        return dict(json.loads(json.dumps(about)))

    def _keep(self, *, ended: bool = False) -> None:
        write_json(self._journal, {"about": self._about(), "ended": ended, **self.found.to_dict()})

    def _resume(self) -> bool:
        """Read what was done before; gives whether that search has ended."""
        try:
            kept = json.loads(self._journal.read_text(encoding="utf-8"))
            if kept["about"] != self._about():
                raise UsageError(
                    f"{self._journal} is of another search", hint="remove it, or choose another --report"
                )
            found = Found(
                [float(rate) for rate in kept["same"]],
                [Tried(**tried) for tried in kept["tried"]],
                kept["confirmed"],
                kept["winner"],
                kept["fresh"],
                kept["client_limited"],
            )
            ended = bool(kept["ended"])
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{self._journal} cannot be read: {error}", hint="remove it") from error
        self.found = found
        if not ended:
            self._say(f"goes on after {len(found.tried)} settings that were tried before")
        return ended
