"""How numbers and results are put into words: one place for terminal and report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from luthier.parts import Function, Part

_SHARES = {"accuracy", "binary_accuracy", "f1", "multilabel_f1", "auroc", "average_precision"}


def is_share(metric: str, values: Iterable[float | None] = ()) -> bool:
    """Whether a metric runs from 0 to 1 and is read as a percentage; a function may report it from 0 to 100.

    >>> is_share("accuracy"), is_share("accuracy", [0.9, None]), is_share("accuracy", [90.5]), is_share("loss")
    (True, True, False, False)
    """
    return metric in _SHARES and not any(value is not None and abs(value) > 1 for value in values)


def metric_text(metric: str, value: float | None) -> str:
    """A metric's value: per cent for shares such as accuracy, four significant digits otherwise.

    >>> metric_text("accuracy", 0.98412), metric_text("loss", 0.051234), metric_text("loss", None)
    ('98.41%', '0.05123', '–')
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return number_text(value)
    return f"{100 * value:.2f}%" if is_share(metric, [value]) else number_text(value)


def named_values(values: Mapping[str, float]) -> str:
    """Several metrics in one line.

    >>> named_values({"loss": 0.05612, "accuracy": 0.9836})
    'loss 0.05612, accuracy 98.36%'
    """
    return ", ".join(f"{name_text(name)} {metric_text(name, value)}" for name, value in values.items())


def number_text(value: float | None) -> str:
    """A number with four significant digits; very large and very small ones with an exponent.

    >>> number_text(0.0123456), number_text(61234.0), number_text(float("nan")), number_text(1.5e-7)
    ('0.01235', '61,234', 'not a number', '1.5e-07')
    """
    if value is None:
        return "–"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def value_text(value: Any) -> str:
    """A recipe's value in words.

    >>> value_text(None), value_text(True), value_text((0.9, 0.99999)), value_text(())
    ('none', 'yes', '0.9, 0.99999', 'none')
    >>> value_text(3e-4), value_text(16384.0), value_text(0.12345)
    ('0.0003', '16384', '0.1235')
    """
    if value is None or value in ((), [], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _setting_text(value)
    if isinstance(value, (tuple, list)):
        return ", ".join(value_text(item) for item in value)
    if isinstance(value, Function):
        return value.function
    if isinstance(value, Part):
        settings = value_text(value.settings(brief=True)) if value.settings(brief=True) else ""
        return f"{value.name} ({settings})" if settings else value.name
    if isinstance(value, dict):
        return ", ".join(f"{name} {value_text(item)}" for name, item in value.items())
    return str(value)


def _setting_text(value: float) -> str:
    """Four significant digits; near 1, where a decay or a beta lies, of what is missing from it."""
    if value.is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    if 0.99 < value < 1:
        return f"{value:.{3 - math.floor(math.log10(1 - value))}f}".rstrip("0")
    return f"{value:.4g}"


def duration_text(seconds: float | None) -> str:
    """A time span as people say it.

    >>> duration_text(0.26), duration_text(21.34), duration_text(125), duration_text(7384), duration_text(None)
    ('0.3 s', '21.3 s', '2 min 5 s', '2 h 3 min', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def budget_text(settings: Mapping[str, Any]) -> str:
    """The budget of a study by its settings; "" when it has none.

    >>> budget_text({"budget_s": 90.0}), budget_text({"budget": "300 epochs", "budget_s": None}), budget_text({})
    ('at most 1 min 30 s', 'at most 300 epochs', '')
    """
    if settings.get("budget_s") is not None:
        return f"at most {duration_text(settings['budget_s'])}"
    return f"at most {settings['budget']}" if settings.get("budget") else ""


def target_text(settings: Mapping[str, Any], metric: str) -> str:
    """The value that ends a study by its settings; "" when none does.

    >>> target_text({"target": 0.99}, "accuracy"), target_text({}, "accuracy")
    ('until 99.00%', '')
    """
    return "" if settings.get("target") is None else f"until {metric_text(metric, settings['target'])}"


def clock_text(seconds: float) -> str:
    """Remaining time as a clock.

    >>> clock_text(5), clock_text(754), clock_text(7384)
    ('0:05', '12:34', '2:03:04')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def seeds_text(n: int) -> str:
    """So many seeds.

    >>> seeds_text(1), seeds_text(3)
    ('1 seed', '3 seeds')
    """
    return "1 seed" if n == 1 else f"{n} seeds"


def validation_text(metric: str) -> str:
    """A metric as the validation data give it.

    >>> validation_text("top_1"), validation_text("val_loss")
    ('validation top 1', 'validation loss')
    """
    return f"validation {name_text(metric.removeprefix('val_'))}"


def read_text(n: int) -> str:
    """How often test data were read: more often than once only where a study went on and found another winner.

    >>> read_text(1), read_text(3)
    ('read once', 'read 3 times')
    """
    return "read once" if n <= 1 else f"read {n} times"


def name_text(name: str) -> str:
    """A field's name for readers: `val_accuracy` is read as "val accuracy"."""
    return name.replace("_", " ")
