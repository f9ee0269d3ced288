"""Errors that a user can mend: what was expected, what came, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LuthierError(ValueError):
    """Wrong input: the message says what was expected, what came and what to do."""


class DataError(LuthierError):
    """Data that cannot be trained on: empty, wrong shape or type, labels out of range, NaN."""


class DownloadError(LuthierError):
    """No source of a data set could be reached or verified."""


class CheckpointError(LuthierError):
    """A checkpoint that is missing, truncated, corrupted or of another model."""


class RecordError(LuthierError):
    """A run folder that is missing, unreadable, unwritable or of another training."""


class NonFiniteLoss(LuthierError):
    """The loss became NaN or infinite.

    Attributes:
        step: optimizer step (from 0) whose loss was not finite.
        layer: first module whose output was not finite, or None when it was not found.
    """

    def __init__(self, message: str, step: int, layer: str | None) -> None:
        super().__init__(message)
        self.step = step
        self.layer = layer

    def __reduce__(self) -> tuple[type[NonFiniteLoss], tuple[str, int, str | None]]:
        return type(self), (str(self), self.step, self.layer)


def close_matches(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: close matches, else all known names.

    >>> close_matches("sdg", ["sgd", "adam"])
    "did you mean 'sgd'?"
    """
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if matches:
        return "did you mean " + " or ".join(repr(match) for match in matches) + "?"
    return "known are " + ", ".join(known) if known else "there are none"


def unknown(what: str, name: object, known: Iterable[str]) -> LuthierError:
    """An error for an unknown name of a kind of thing.

    >>> str(unknown("optimizer", "sdg", ["sgd", "adam"]))
    "unknown optimizer 'sdg': did you mean 'sgd'?"
    """
    return LuthierError(f"unknown {what} {name!r}: {close_matches(str(name), known)}")
