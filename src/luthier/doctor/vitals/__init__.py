"""Vitals: the numbers that a watched training leaves, and the only thing that the rules of `symptoms` read.

`measure` writes rows (plain dicts, one JSON object a line in `vitals.jsonl`); this package gives them types.
Whoever adds a number adds it here first. Absent numbers are None or empty: a rule that needs one returns `NotSeen`.

Kinds of rows: anatomy, optimizer (`anatomy`), graph, look (`looks`), norms, steps, targets, evaluation, metrics, event,
spent (`course`), data. `reading` puts them together.
Steps count optimizer steps from 0: step 0 is the first one, measured before any weight has moved.
"""

from luthier.doctor.vitals.anatomy import Anatomy, Optimizer, Parameter
from luthier.doctor.vitals.course import BatchTargets, Evaluation, Event, Metrics, Norms, Spent, Steps
from luthier.doctor.vitals.looks import Argument, Look, Node, Predictions, Stats
from luthier.doctor.vitals.reading import Vitals
from luthier.doctor.vitals.rows import Row

__all__ = [
    "Anatomy",
    "Argument",
    "BatchTargets",
    "Evaluation",
    "Event",
    "Look",
    "Metrics",
    "Node",
    "Norms",
    "Optimizer",
    "Parameter",
    "Predictions",
    "Row",
    "Spent",
    "Stats",
    "Steps",
    "Vitals",
]
