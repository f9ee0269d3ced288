"""Early stopping: pure folds over the history of the monitored value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from luthier.parts import Part, resolve


class EarlyStopping(Part):
    """Stop after `patience` evaluations without an improvement of more than `min_delta`.

    A value improves when it beats the best so far by more than `min_delta`; NaN never does.

    >>> EarlyStopping(patience=2).stops([0.9, 0.5, 0.6, 0.7], minimise=True)
    True
    """

    name: Literal["patience"] = "patience"
    patience: int = Field(5, ge=1, description="Evaluations without improvement after which training stops.")
    min_delta: float = Field(0.0, ge=0, description="A change must be greater than this to count.")

    def stops(self, history: Sequence[float], minimise: bool) -> bool:
        """Whether training should end after these evaluations.

        Args:
            history: the monitored value after each evaluation so far.
            minimise: whether lower is better.
        """
        best = self.best_index(history, minimise)
        since = len(history) if best is None else len(history) - 1 - best
        return since >= self.patience

    def best_index(self, history: Sequence[float], minimise: bool) -> int | None:
        """The evaluation from which patience counts: the last improvement; None when there was none.

        Args:
            history: the monitored value after each evaluation so far.
            minimise: whether lower is better.

        >>> EarlyStopping().best_index([0.5, 0.8, float("nan"), 0.7], minimise=False)
        1
        """
        index, best = None, math.inf
        for i, value in enumerate(history):
            cost = value if minimise else -value
            if cost < best - self.min_delta:
                index, best = i, cost
        return index


STOPPINGS: dict[str, type[EarlyStopping]] = {"patience": EarlyStopping}


def _from_patience(value: Any) -> Any:
    """An integer stands for its patience."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"name": "patience", "patience": value}
    return value


# Validators that come before run from last to first: an integer becomes a dict, then `resolve` sees it.
EarlyStoppingChoice = Annotated[
    EarlyStopping, resolve(STOPPINGS, "early stopping"), BeforeValidator(_from_patience, json_schema_input_type=Any)
]
