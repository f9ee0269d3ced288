"""What the events of a study make of its state: `fold` takes them all, `apply` the next one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.files import from_stored
from luthier.tuning.levels import level
from luthier.tuning.objectives import RESULT, TRAIN_TIME, best_scores, losses
from luthier.tuning.state import Event, State, Trial, trial_folder

_TOTALS = ("trials", "budget", "strategy", "target")


def fold(events: Iterable[Event], folder: Path) -> State:
    """The state that events leave."""
    state = State(folder)
    for event in events:
        apply(state, event)
    return state


def apply(state: State, event: Event) -> None:
    """Take one event into the state.

    Kinds: created, edited, opened, proposed, assigned, row, paused, finished, stopped, failed, crashed, recovered,
    prescribed, widened, turn, tested, unread, closed. An event about an ended trial changes nothing (a message that
    came late).
    """
    state.clock = max(state.clock, event.clock)
    payload = event.payload
    if event.kind == "created":
        state.begin(payload)
    elif event.kind == "edited":
        state.description = {**state.description, "task": payload["task"]}
    elif event.kind == "opened":
        if any(payload.get(name) != state.settings.get(name) for name in _TOTALS):
            _take_up(state)
        state.settings, state.ended, state.unread = payload, "", ""
    elif event.kind == "closed":
        state.ended = payload["reason"]
    elif event.kind == "tested":
        state.tests.update({int(number): values for number, values in payload["values"].items()})
        state.test_readings += 1
    elif event.kind == "unread":
        state.unread = payload["reason"]
    elif event.kind == "turn":
        state.virtual = payload["virtual"]
    elif event.kind == "prescribed":
        state.changes[payload["number"]] = payload["changes"]
    elif event.kind == "widened":
        state.ranges |= payload["ranges"]
        state.widenings |= {path: state.widenings.get(path, 0) + 1 for path in payload["ranges"]}
    elif event.kind == "proposed":
        state.trials.append(_proposed(state, payload))
        state.changed.append(payload["number"])
    else:
        trial = state.trials[payload["number"]]
        if not trial.ended:
            state.trials[trial.number] = _CHANGES[event.kind](state, trial, payload)
            state.changed.append(trial.number)


def _proposed(state: State, payload: Mapping[str, Any]) -> Trial:
    values = from_stored(payload["values"])
    return Trial(
        **{name: payload[name] for name in ("number", "kind", "arm", "seed", "of", "total_steps", "until")},
        values=values,
        state="waiting",
        reason="",
        value=None,
        step=0,
        time_s=0.0,
        started_s=None,
        ended_s=None,
        rows=[],
        folder=trial_folder(state.folder, payload["number"]),
        params=state.completed(values),
        source=payload.get("source", ""),
    )


def _assigned(state: State, trial: Trial, payload: Mapping[str, Any]) -> Trial:
    started = state.clock if trial.started_s is None else trial.started_s
    return replace(
        trial,
        state="running",
        reason="",
        until=payload["until"],
        started_s=started,
        ends=payload.get("ends", 0.0),
    )


def _row(state: State, trial: Trial, payload: Mapping[str, Any]) -> Trial:
    row = payload["row"]
    total = max(trial.total_steps, row["step"])  # of a function nobody may know it before
    position = {"step": row["step"], "time_s": row["time_s"], "total_steps": total}
    position["deaths"] = 0 if row["step"] > trial.furthest else trial.deaths
    position["furthest"] = max(trial.furthest, row["step"])
    if _follows(trial, row) and not (total > trial.total_steps and TRAIN_TIME in trial.scores):
        return replace(
            trial, rows=[*trial.rows, row], **_better(state, trial, _scored(state, [row], total)), **position
        )
    rows = [*_before(trial.rows, row), row]
    return replace(trial, rows=rows, **_scored(state, rows, total), **position)


def _before(rows: list[dict[str, Any]], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The readings that come before one: a resumed training reads anew; a result stands beside the last reading."""
    most = row["step"] if row["kind"] == RESULT else row["step"] - 1
    return [old for old in rows if old["step"] <= most and old["kind"] != RESULT]


def _follows(trial: Trial, row: Mapping[str, Any]) -> bool:
    """Whether a reading and the one before it come after epochs: then it counts beside all that counted so far."""
    last = trial.rows[-1] if trial.rows else None
    return last is not None and last["step"] < row["step"] and last["kind"] == row["kind"] == "epoch"


def _better(state: State, trial: Trial, scored: dict[str, Any]) -> dict[str, Any]:
    """A trial's value and scores so far, or those of its next reading where they are better."""
    so_far = {"value": trial.value, "scores": trial.scores}
    both = [each for each in (so_far, scored) if each["value"] is not None]
    return min(both, key=lambda each: losses(each["scores"].values(), state.objectives), default=so_far)


def _scored(state: State, rows: list[dict[str, Any]], total_steps: int) -> dict[str, Any]:
    """What rows say of a training of so many steps: a trial's value and scores."""
    read = best_scores(_curve(rows), state.objectives, total_steps)
    if read is None:
        return {"value": None, "scores": {}}
    return {"value": read[0], "scores": dict(zip([each.name for each in state.objectives], read, strict=True))}


def _position(trial: Trial, payload: Mapping[str, Any]) -> dict[str, Any]:
    return {name: payload.get(name, getattr(trial, name)) for name in ("step", "time_s", "total_steps", "reason")}


def _paused(state: State, trial: Trial, payload: Mapping[str, Any]) -> Trial:
    return _levelled(state, replace(trial, state="paused", **_position(trial, payload)))


def _levelled(state: State, trial: Trial) -> Trial:
    """The trial with its level."""
    first = state.objectives[0]
    read = [(row["step"], first.of(row, trial.total_steps)) for row in _curve(trial.rows)]
    finite = [(step, value) for step, value in read if math.isfinite(value)]
    return replace(trial, level=level(finite, trial.total_steps, first.direction))


def _curve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The readings that count: what a function returned, else those after epochs, where there are any."""
    return next(filter(None, ([row for row in rows if row["kind"] == kind] for kind in (RESULT, "epoch"))), rows)


def _finished(state: State, trial: Trial, payload: Mapping[str, Any]) -> Trial:
    ended = replace(trial, state="finished", ended_s=state.clock, **_position(trial, payload))
    scored = _scored(state, ended.rows, ended.step)  # it may have ended before its last step
    if TRAIN_TIME in scored["scores"]:
        scored["scores"][TRAIN_TIME] = ended.time_s
    ended = _levelled(state, replace(ended, **scored))
    if ended.value is None:
        missing = ", ".join(objective.name for objective in state.objectives)
        return replace(ended, state="failed", reason=f"no finite validation value of {missing}")
    return ended


def _stopped(state: State, trial: Trial, payload: Mapping[str, Any]) -> Trial:
    may_return = payload.get("may_return", False)
    return replace(trial, state="stopped", ended_s=state.clock, reason=payload["reason"], may_return=may_return)


def _take_up(state: State) -> None:
    """A call with other totals: trials that were outranked when the last call ended wait at their rungs again."""
    for trial in [trial for trial in state.trials if trial.may_return]:
        reason = f"so far {trial.reason}"
        state.trials[trial.number] = replace(trial, state="paused", reason=reason, ended_s=None, may_return=False)
        state.changed.append(trial.number)


def _failed(state: State, trial: Trial, payload: Mapping[str, Any]) -> Trial:
    failed = replace(trial, state="failed", ended_s=state.clock, **_position(trial, payload))
    if failed.time_s or failed.started_s is None:
        return failed
    return replace(failed, time_s=state.clock - failed.started_s)  # killed before it could tell


def _crashed(state: State, trial: Trial, payload: Mapping[str, Any]) -> Trial:
    """The first death of a worker pauses the trial, so that it goes on from its checkpoint.

    A second one before it gets further than ever ends it: it is likely to be the trial's own fault.
    """
    crashed = replace(trial, crashes=trial.crashes + 1, deaths=trial.deaths + 1)
    return _paused(state, crashed, payload) if crashed.deaths < 2 else _failed(state, crashed, payload)


_CHANGES = {
    "assigned": _assigned,
    "row": _row,
    "paused": _paused,
    "finished": _finished,
    "stopped": _stopped,
    "failed": _failed,
    "crashed": _crashed,
    "recovered": _paused,
}
