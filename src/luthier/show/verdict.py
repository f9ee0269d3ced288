"""What a study found, in words: how much the winner gains over the baseline and how sure that is.

The one place where an interval becomes a word; terminal and report both read it from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

from luthier.show.words import is_share, metric_text, number_text, seeds_text, validation_text
from luthier.tuning.conditions import value_or_none
from luthier.tuning.state import BASELINE
from luthier.tuning.values import plain

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.tuning.study import Comparison, Study

Level = Literal["certain", "rough", "noise", "worse", "unknown"]

# A gain is "certain" when its interval excludes zero and reaches at most this share of the gain to either side;
# with a wider interval only the direction is certain.
_SHARP = 0.5

_WORDS: dict[Level, str] = {
    "certain": "certain",
    "rough": "certain to be better, its size is rough",
    "noise": "within noise",
    "worse": "certain to be worse",
    "unknown": "one seed says nothing about the spread",
}


@dataclass(frozen=True)
class Verdict:
    """How sure a comparison is: a level for colours, and the words."""

    level: Level
    words: str


def verdict(difference: float, low: float, high: float) -> Verdict:
    """Put a gain and its 95 % interval into words.

    Args:
        difference: mean gain, positive when the winner is better.
        low: lower end of the interval; not finite when there is only one seed.
        high: upper end.

    >>> verdict(0.091, 0.089, 0.093).words, verdict(0.01, -0.01, 0.03).words
    ('certain', 'within noise')
    >>> verdict(0.02, 0.001, 0.039).words
    'certain to be better, its size is rough'
    """
    level = _level(difference, low, high)
    return Verdict(level, _WORDS[level])


def _level(difference: float, low: float, high: float) -> Level:
    if not all(math.isfinite(value) for value in (difference, low, high)):
        return "unknown"
    if high < 0:
        return "worse"
    if low <= 0:
        return "noise"
    return "certain" if (high - low) / 2 <= _SHARP * difference else "rough"


def gain_text(metric: str, gain: float, values: Iterable[float] = ()) -> str:
    """A gain with its sign; points (hundredths) for shares such as accuracy, unless these values are no shares.

    >>> gain_text("accuracy", 0.0912), gain_text("loss", -0.0123)
    ('+9.12 points', '-0.0123')
    """
    if not math.isfinite(gain):
        return number_text(gain)
    return f"{100 * gain:+.2f} points" if is_share(metric, values) else f"{gain:+.4g}"


def comparison_text(comparison: Comparison) -> str:
    """The gain of the winner, its interval, the number of seeds and how sure that is."""
    n = len(comparison.winner)
    values = [*comparison.baseline, *comparison.winner]
    gain = gain_text(comparison.metric, comparison.difference, values)
    judged = verdict(comparison.difference, comparison.low, comparison.high)
    if judged.level == "unknown":
        return f"{gain} over {seeds_text(n)}: {judged.words}"
    low, high = (_bare(comparison.metric, end, values) for end in (comparison.low, comparison.high))
    return f"{gain}, 95% interval {low} to {high} over {seeds_text(n)}: {judged.words}"


def spread_text(metric: str, values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds.

    >>> spread_text("accuracy", [0.97, 0.98, 0.99]), spread_text("loss", [0.5])
    ('98.00% ± 1.00', '0.5')
    """
    if not values:
        return "–"
    mean = metric_text(metric, fmean(values))
    finite = len(values) > 1 and all(math.isfinite(value) for value in values)
    return f"{mean} ± {_bare(metric, stdev(values), values)}" if finite else mean


def recipe_changes(baseline: Recipe, winner: Recipe) -> dict[str, tuple[Any, Any]]:
    """What the winner changes, by dotted path with (baseline's, winner's); the seed does not count.

    A setting of a part that one of the two does not have counts as None, and is told only for the winner, and only
    where it is not that part's default.
    """
    ours, theirs, brief = baseline.flat(), winner.flat(), winner.flat(brief=True)
    changes = baseline.differences(winner)
    told = {path for path in theirs if path in ours or path in brief} - {"seed"}
    return {path: pair for path, pair in changes.items() if path in told}


def winner_changes(study: Study, number: int) -> dict[str, tuple[Any, Any]]:
    """What a trial changes, by name with (baseline's, trial's)."""
    if study.baseline is not None:
        return recipe_changes(study.baseline, study.recipe(number))
    pairs = {name: (value_or_none(study.start, name), value) for name, value in study.trials[number].values.items()}
    return {name: pair for name, pair in pairs.items() if plain(pair[0]) != plain(pair[1])}


def is_behind(study: Study) -> bool:
    """Whether the trial that is compared with the baseline is no better, by its level or as both were read."""
    comparison, best = study.comparison, study.best
    return comparison is not None and (comparison.difference <= 0 or best is None or best.arm == BASELINE)


def challenger_text(study: Study) -> str:
    """What to call the trial that is compared with the baseline: no winner where it is behind."""
    return "best other trial" if is_behind(study) else "winner"


def headline(study: Study) -> str:
    """One sentence: what changed, by how much it helped, how sure that is."""
    comparison, metric = study.comparison, validation_text(study.metric)
    if comparison is None:
        best = study.best
        if best is None:
            return f"No trial of {study.name} has finished yet."
        told = f"Best {metric} so far: {metric_text(study.metric, best.value)}, trial {best.number}"
        repeats = [trial for trial in study.trials if trial.of == best.number and trial.state == "finished"]
        if again := [trial.value for trial in repeats if trial.value is not None]:
            return f"{told}; with {seeds_text(len(again))} more {spread_text(study.metric, again)}."
        return f"{told}."
    changed = _enumerated(list(winner_changes(study, comparison.winner_number)))
    before, after = (metric_text(study.metric, fmean(side)) for side in (comparison.baseline, comparison.winner))
    told = f"took {metric} from {before} to {after} ({comparison_text(comparison)})"
    level = verdict(comparison.difference, comparison.low, comparison.high).level
    if level in ("noise", "worse") or is_behind(study):
        return f"No trial is shown to beat the baseline: changing {changed}, the best of them, {told}."
    return f"Changing {changed} {told}."


def unread_text(study: Study) -> str:
    """Why there is no reading of the test data, and what to do about it."""
    return f"Test data not read: {study.state.unread}. Make the task anew for a study that reads them."


def _enumerated(names: Sequence[str], limit: int = 5) -> str:
    """Names as a list in a sentence, the last ones counted.

    >>> _enumerated(["lr", "dropout", "schedule"])
    'lr, dropout and schedule'
    """
    names = [*names[:limit], f"{len(names) - limit} more"] if len(names) > limit + 1 else list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names) or "nothing"


def _bare(metric: str, value: float, values: Iterable[float]) -> str:
    return f"{100 * value:.2f}" if is_share(metric, values) else f"{value:.4g}"
