"""Which fields matter: how far the values of the best trials differ from those of all, against what chance gives."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from luthier.tuning.optuna_view import frozen_trial, quiet
from luthier.tuning.ranges import Space

LEAST = 20
"""Trials below which nothing can be said."""
_BEST, _BEST_SHARE = 5, 0.1  # as Optuna advises: a tenth of the trials, but at least five
_SHUFFLES = 99


class Importance(NamedTuple):
    """How much a field matters for being among the best trials.

    Attributes:
        path: of the field.
        share: of the importances of all fields, 0-1.
        chance: how likely at least this importance is where ranks are dealt to the trials at random, 0.01-1; above 0.05
            it is not told from chance.
    """

    path: str
    share: float
    chance: float

    @property
    def clear(self) -> bool:
        """Whether it is told from chance; of twenty fields that do not matter about one is."""
        return self.chance <= 0.05


def importances(space: Space, ranked: Sequence[Mapping[str, Any]], seed: int = 0) -> list[Importance]:
    """The fields of a space by importance, the largest first; none with fewer than 20 trials.

    Args:
        space: ranges by path.
        ranked: values of the trials' present fields, best trial first; all within their ranges.
        seed: of the ranks dealt at random.

    Source: Watanabe, Bansal, Hutter, "PED-ANOVA" (2023), with conditions as in "Conditional PED-ANOVA" (2026), both as
    Optuna has them; the comparison with chance is a permutation test. A search that learns tries good values more
    often, so that what drifted with them by chance may pass.
    """
    import optuna

    if len(ranked) < LEAST:
        return []
    with quiet():
        best = max(_BEST_SHARE, _BEST / len(ranked))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
        study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
        complete = optuna.trial.TrialState.COMPLETE
        study.add_trials([frozen_trial(space, values, complete, (float(rank),)) for rank, values in enumerate(ranked)])

        def found(places: Sequence[int]) -> dict[str, float]:
            told: dict[str, float] = optuna.importance.get_param_importances(
                study, evaluator=evaluator, target=lambda trial: float(places[trial.number]), normalize=False
            )
            return told

        measured = found(range(len(ranked)))
        chance = random.Random(seed)
        shuffled = [found(chance.sample(range(len(ranked)), len(ranked))) for _ in range(_SHUFFLES)]
    total = sum(measured.values())
    return [
        Importance(path, value / total, (1 + sum(each[path] >= value for each in shuffled)) / (1 + _SHUFFLES))
        for path, value in sorted(measured.items(), key=lambda item: -item[1])
        if value > 0
    ]
