"""Too little learnt although training is stable: the network cannot hold more, or has not had what it takes."""

from __future__ import annotations

import math

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.courses import (
    FEW,
    Course,
    accurate,
    course_of,
    good_enough,
    lost_ground,
    narrow_layers,
    poor_below,
)
from luthier.doctor.symptoms.facts import Baseline, epoch_losses, is_classification, node_of
from luthier.doctor.symptoms.layers import Layer, first_look, layers, names, source_of
from luthier.doctor.symptoms.outcomes import data_allow_more
from luthier.doctor.vitals import Look, Vitals


def _validation_follows(vitals: Vitals, base: Baseline) -> bool:
    """Validation is not much worse than training (else it is no underfitting)."""
    train, val = epoch_losses(vitals)
    if not val:
        return True
    return base.progress(train[-1][1]) - base.progress(val[-1][1]) < 0.2


def underfitting(vitals: Vitals) -> list[Finding] | NotSeen:
    """Flat, stable, and still near the loss of a constant answer in training and validation."""
    course = course_of(vitals, 60)
    if course is None:
        return FEW
    starved = _starved(vitals, course)
    if starved is not None:
        return [starved]
    poor = course.end < poor_below(vitals) and not good_enough(vitals, 0.75)
    if course.base.assumed or not poor or not course.flat or not course.stable:
        return []
    if course.end < -0.1 or not _validation_follows(vitals, course.base) or lost_ground(vitals, course):
        return []
    narrow = narrow_layers(vitals) or _linear(vitals)
    return [
        Finding(
            "underfitting",
            "warning",
            f"The training loss settled at {course.curve.end:.3g}, only {max(course.end, 0):.0%} of the way from a "
            f"constant answer ({course.base.value:.3g}) to {course.base.floor:.2g}.",
            (
                f"the last third of the {vitals.n_steps} steps brought {course.curve.drop:.2g}",
                *([f"layers that limit it: {names(narrow)}"] if narrow else []),
                *(["small learners predict clearly better from the same data"] if data_allow_more(vitals) else []),
            ),
            tuple(narrow),
            certainty=0.6 if narrow else 0.5 if course.end > 0.04 else 0.4,
            numbers={"progress": course.end, "narrow": len(narrow)},
        )
    ]


def _starved(vitals: Vitals, course: Course) -> Finding | None:
    """Everything passes through a layer of one or two units, and the loss stays unfitted: no lr or time cures that."""
    units = _bottleneck(vitals)
    if not units or course.base.assumed or course.end > 0.93 or not course.stable or vitals.n_steps < 100:
        return None
    if accurate(vitals, 0.95):
        return None
    place, width = min(units, key=lambda item: item[1])
    return Finding(
        "underfitting",
        "warning",
        f"All that the net knows passes through {width} unit{'s' * (width > 1)} of {place}: too few to fit the data.",
        (f"after {vitals.n_steps} steps {course.end:.0%} of the way from a constant answer to a perfect one",),
        (place,),
        0,
        0.7,
        {"progress": course.end, "narrow": 1, "width": width},
    )


def _bottleneck(vitals: Vitals) -> list[tuple[str, int]]:
    """Hidden layers of at most two units; reconstructions have them by intent."""
    look = first_look(vitals) or (vitals.looks[0] if vitals.looks else None)
    chain = layers(vitals, look) if look is not None else []
    if len(chain) < 2 or (not is_classification(vitals) and chain[-1].parameter.shape[0] > 4):
        return []
    found = []
    for layer in chain[:-1]:
        shape = layer.parameter.shape
        units = shape[-1] if "weight_hh" in layer.name else shape[0]
        narrow = units <= 2 and "weight_ih" not in layer.name and math.prod(shape[1:]) >= units
        wider = look is not None and _reads_more(chain[-1], units) and _has_bypass(look, layer)
        if narrow and look is not None and not wider:
            found.append((layer.place, units))
    return found


def _reads_more(last: Layer, units: int) -> bool:
    """The head reads more than so many numbers: what leads past a layer of that width can be wider."""
    return math.prod(last.parameter.shape[1:]) > units


def _has_bypass(look: Look, layer: Layer) -> bool:
    """A way from the inputs to the outputs that does not lead through this layer: a skip, an expert beside it."""
    waiting, seen = set(look.outputs), set[int]()
    while waiting:
        node = look.nodes[waiting.pop()]
        seen.add(node.index)
        if any(source_of(look, item.source) == f"param:{layer.name}" for item in node.arguments):
            continue
        if any(item.source == "input:0" for item in node.arguments):
            return True
        before = [node_of(look, item.source) for item in node.arguments]
        waiting |= {item.index for item in before if item is not None} - seen
    return False


def _linear(vitals: Vitals) -> list[str]:
    """The only layer of a linear model, when small learners find more in the data than it does."""
    look = first_look(vitals) or (vitals.looks[0] if vitals.looks else None)
    chain = layers(vitals, look) if look is not None else []
    alone = len(chain) == 1 and chain[0].parameter.layer_type == "Linear" and data_allow_more(vitals)
    return [f"{chain[0].place} (a linear model)"] if alone else []
