"""Tuning: draw settings from a space, try them, give up on hopeless ones, remember everything in a storage.

Draws are Optuna's TPE (Bergstra et al. 2011). A trial's draw follows from the seed, its place in the study and the results before it, so
workers that share a storage never draw the same, and a study that was killed and resumed ends with the trials of an undisturbed one.

A trial is given up when its best score so far is below the median of what complete trials had at that epoch (Golovin et al. 2017, Google
Vizier), from the second epoch and the sixth trial on. Not successive halving or Hyperband: with forty trials of few epochs, these decide
on one noisy epoch, or in brackets of a handful, and against augmentation and regularisation, which start slowly.

A trial whose worker died (see ``workers``), or was stopped by Ctrl-C, goes back and is run again with the same settings. The number of
trials is exact with any number of workers: whoever starts one too many gives it back before it trains.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import optuna
from msgspec import Meta
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from .errors import TrainError
from .space import Choices, Space
from .storage import check_study
from .workers import BEAT, is_alive, this_worker

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_STARTUP_TRIALS, _FIRST_EPOCH = 5, 2


class Hopeless(Exception):
    """Ends a trial that is not worth going on with; the message is its reason, for the table."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """``trials``: finished ones in the study, whoever ran them. ``time_limit``: no trial starts after so many seconds."""

    trials: Annotated[int, Meta(ge=1, description="40 is the default")] = 40
    time_limit: Annotated[float, Meta(gt=0, description="seconds, leave it out for no limit")] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial as the study remembers it. ``state``: complete, pruned or running; ``score`` the best of its epochs, None before the first.

    ``notes``: whatever the objective noted. ``reason``: why it was given up.
    """

    number: int
    state: str
    score: float | None
    values: Mapping[str, Any]
    epochs: int
    seconds: float
    reason: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All trials in order of their start, and each setting's share in the variance of the score (fANOVA; empty for under 4 trials)."""

    trials: tuple[Trial, ...]
    importances: Mapping[str, float]

    @property
    def best(self) -> Trial | None:
        """The complete trial with the highest score; the earlier of two."""
        complete = [trial for trial in self.trials if trial.state == "complete" and trial.score is not None]
        return max(complete, key=lambda trial: trial.score or 0.0, default=None)

    @property
    def finished(self) -> int:
        return sum(trial.state in ("complete", "pruned") for trial in self.trials)


class Attempt:
    """A running trial, as the objective sees it: ``values`` to try, and where to say how it goes."""

    def __init__(self, study: Study, trial: optuna.Trial, space: Space) -> None:
        self.number = trial.number
        self._study, self._trial, self._told = study, trial, 0.0
        trial.set_user_attr("worker", this_worker())
        self.beat()
        self.values = {name: _draw(trial, name, space) for name in space}

    def report(self, epoch: int, score: float) -> None:
        """Tell the validation score after ``epoch`` (from 1); raises :class:`Hopeless` when it is not worth going on."""
        self._trial.report(score, epoch)
        if self._trial.should_prune():
            raise Hopeless(f"below the median after epoch {epoch}")

    def note(self, **facts: Any) -> None:
        """Remember facts (JSON) for the table."""
        for name, value in facts.items():
            self._trial.set_user_attr(f"note.{name}", value)

    def beat(self) -> None:
        """Say that this worker lives; to be called often, does something once a minute."""
        if time.monotonic() - self._told > BEAT or not self._told:
            self._told = time.monotonic()
            self._trial.set_user_attr("beat", time.time())

    def finish(self, state: TrialState, score: float | None = None, reason: str = "") -> None:
        """The end of the trial; nothing happens when another worker took it over, thinking this one dead."""
        if reason:
            self._trial.set_user_attr("reason", reason)
        self._study.tell(self._trial, score, state, skip_if_finished=True)


Objective = Callable[[Attempt], float]
PAUSE = 0.5  # seconds from one look at other workers' trials to the next


def tune(
    objective: Objective,
    space: Space,
    config: TuneConfig,
    storage: BaseStorage,
    name: str,
    identity: Mapping[str, Any],
    told: Callable[[Trial, Summary], None] | None = None,
    fresh: bool = False,
    waits: Callable[[int], None] = lambda busy: None,
) -> Summary:
    """Run trials until the study ``name`` in ``storage`` has ``config.trials`` finished ones; the last of other workers are waited for.

    Args:
        objective: settings to score, higher is better; raises Hopeless to end a trial, anything else ends the tuning. identity: JSON of
            what the scores depend on, the space included; a study that was made with another is refused. told: gets each trial that ended
            here. fresh: forget the study first, if no other worker is at it. waits: is told once how many trials are waited for.

    Raises TrainError for a study that was made with something else, or is busy and should be forgotten.
    """
    with _quiet():
        study = _join(storage, name, identity, config.seed, fresh)
        check_study(study, space)
        started, waited = time.monotonic(), False
        while config.time_limit is None or time.monotonic() - started < config.time_limit:
            if _open_places(study, config) <= 0:
                if not (busy := len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))):
                    break
                if not waited:
                    waits(busy)
                waited = True
                time.sleep(PAUSE)
                continue
            trial = study.ask()
            if _place(study, trial.number) >= config.trials:  # another worker was quicker
                _give_back(study, trial.number)
                continue
            _run(study, trial, objective, space)
            summary = _summary(study, space, weigh=False)
            if told is not None and (mine := [one for one in summary.trials if one.number == trial.number]):
                told(mine[0], summary)
        return _summary(study, space, weigh=True)


def _run(study: Study, trial: optuna.Trial, objective: Objective, space: Space) -> None:
    try:
        attempt = Attempt(study, trial, space)
        try:
            score = objective(attempt)
            if math.isfinite(score):
                attempt.finish(TrialState.COMPLETE, score)
            else:
                attempt.finish(TrialState.PRUNED, reason=f"the score was {score}")
        except Hopeless as stop:
            attempt.finish(TrialState.PRUNED, reason=str(stop))
    except UpdateFinishedTrialError:
        return  # taken over by another worker while this one slept
    except KeyboardInterrupt:
        _give_back(study, trial.number)
        raise
    except BaseException:
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise


def _open_places(study: Study, config: TuneConfig) -> int:
    """How many trials are still to be started, after those of dead workers have gone back."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _is_alive(trial):
            _give_back(study, trial.number)
    return config.trials - len(study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING)))


def _is_alive(trial: FrozenTrial) -> bool:
    worker, beat = (trial.user_attrs.get(name) for name in ("worker", "beat"))
    if worker is None or beat is None:  # killed in, or living through, the moment between its start and its name
        return trial.datetime_start is not None and (datetime.now() - trial.datetime_start).total_seconds() < BEAT
    return is_alive(worker, beat)


def _give_back(study: Study, number: int) -> None:
    """End a running trial and queue its settings again; of two workers that try so at once, one does."""
    try:
        study.tell(number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):  # what Optuna raises for a trial that has ended meanwhile
        return
    [trial] = [one for one in study.get_trials(deepcopy=False) if one.number == number]
    # A trial that was itself queued may have died before it took up all of its settings.
    if settings := {**trial.user_attrs.get("queued", {}), **trial.params}:
        study.enqueue_trial(settings, user_attrs={"queued": settings})


def _place(study: Study, number: int) -> int:
    """How many trials before ``number`` count; as only failed ones do not, and numbers are given in order, it can only fall."""
    return sum(trial.number < number and trial.state != TrialState.FAIL for trial in study.get_trials(deepcopy=False))


class _BySeedAndPlace(optuna.samplers.BaseSampler):
    """TPE with a generator of its own for each trial, from the seed and the trial's place in the study."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sampler = optuna.samplers.TPESampler(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        digest = hashlib.sha256(f"{self._seed} {_place(study, trial.number)}".encode()).digest()
        self._sampler = optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4], "big"))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler.after_trial(study, trial, state, values)


def _draw(trial: optuna.Trial, name: str, space: Space) -> Any:
    one = space[name]
    if isinstance(one, Choices):
        return _decoded(one, trial.suggest_categorical(name, one.keys))
    if one.whole:
        return trial.suggest_int(name, int(one.low), int(one.high), step=int(one.step or 1), log=one.log)
    return trial.suggest_float(name, one.low, one.high, step=one.step, log=one.log)


def _decoded(choices: Choices, key: Any) -> Any:
    return choices.values[choices.keys.index(key)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's remarks off for a while: what is to be said, the caller says."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _join(storage: BaseStorage, name: str, identity: Mapping[str, Any], seed: int, fresh: bool) -> Study:
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=_FIRST_EPOCH)
    sampler = _BySeedAndPlace(seed)
    create = {"storage": storage, "sampler": sampler, "pruner": pruner, "study_name": name, "direction": "maximize"}
    if fresh and name in optuna.get_all_study_names(storage):
        old = optuna.load_study(study_name=name, storage=storage)
        if any(map(_is_alive, old.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))):
            raise TrainError(f"study (={name}) is busy: another worker runs a trial of it; stop that one first, or take another --study")
        optuna.delete_study(study_name=name, storage=storage)
    study = optuna.create_study(**create, load_if_exists=True)  # type: ignore[arg-type]
    if "identity" not in study.user_attrs:
        if study.get_trials(deepcopy=False):
            raise TrainError(f"study (={name}) holds trials of another program; take another --study")
        study.set_user_attr("identity", identity)
    if not isinstance(study.user_attrs["identity"], dict):
        raise TrainError(f"study (={name}) is damaged: its identity is no table; take another --study")
    stored, mine = (dict(_leaves(json.loads(json.dumps(about)))) for about in (study.user_attrs["identity"], identity))
    if other := [key for key in sorted({*stored, *mine}) if stored.get(key) != mine.get(key)]:
        told = ", ".join(f"{key} was {_short(stored.get(key))} and is {_short(mine.get(key))}" for key in other[:3])
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise TrainError(f"study (={name}) was made with something else: {told}{more}; take another --study, or --force to forget this one")
    return study


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, f"{prefix}{key} ")
        else:
            yield prefix + key, inner


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "..."


def _summary(study: Study, space: Space, weigh: bool) -> Summary:
    found = [_trial(one, space) for one in study.get_trials(deepcopy=False) if one.state in (*FINISHED, TrialState.RUNNING)]
    return Summary(trials=tuple(found), importances=_importances(study) if weigh else {})


def _trial(one: FrozenTrial, space: Space) -> Trial:
    values = {name: _decoded(told, key) if isinstance(told := space[name], Choices) else key for name, key in one.params.items()}
    scores = one.intermediate_values
    score = one.value if one.state == TrialState.COMPLETE else max(scores.values(), default=None)
    return Trial(
        number=one.number,
        state=one.state.name.lower(),
        score=score,
        values=values,
        epochs=len(scores),
        seconds=one.duration.total_seconds() if one.duration else 0.0,
        reason=one.user_attrs.get("reason", ""),
        notes={name.removeprefix("note."): value for name, value in one.user_attrs.items() if name.startswith("note.")},
    )


def _importances(study: Study) -> dict[str, float]:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return {}
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: float(share) for name, share in shares.items()}
