"""Test data under seal: opened once, at the end, for a stated reason."""

from __future__ import annotations

from typing import Any

from luthier.data.trees import Tree, named_leaves
from luthier.errors import LuthierError


class Sealed:
    """Holds data so that they can be read once only.

    What is measured on test data more than once, with a choice in between, is no test any more. Sealed data
    travel to other processes sealed; each copy can be opened once.

    Args:
        data: anything; it is not looked at.

    >>> sealed = Sealed([3, 4])
    >>> sealed.open("the winner, measured")
    [3, 4]
    >>> sealed.open("one more look")
    Traceback (most recent call last):
    luthier.errors.LuthierError: test data are read once only, and were read already for: the winner, measured
    """

    __slots__ = ("__data", "__reason", "__sizes")

    def __init__(self, data: Tree) -> None:
        self.__data = data
        self.__reason: str | None = None
        self.__sizes = _sizes(data)

    def open(self, reason: str) -> Tree:
        """Give the data, for the first and last time.

        Args:
            reason: what they are read for; a second reading is told of it.

        Raises:
            LuthierError: they were read already, or the reason is empty.
        """
        if self.__reason is not None:
            raise LuthierError(f"test data are read once only, and were read already for: {self.__reason}")
        if not reason.strip():
            raise LuthierError("opening test data needs a reason, such as 'final measurement of the winner'")
        data, self.__data, self.__reason = self.__data, None, reason
        return data

    @property
    def opened(self) -> str | None:
        """The reason for which the data were read, or None while they are sealed."""
        return self.__reason

    def __repr__(self) -> str:
        state = "sealed" if self.__reason is None else f"opened for: {self.__reason}"
        return f"Sealed({self.__sizes}; {state})"


def _sizes(data: Any) -> str:
    """Shapes of arrays, lengths of other things."""
    shapes = (getattr(leaf, "shape", None) for _, leaf in named_leaves(data, ""))
    known = ["x".join(str(size) for size in shape) for shape in shapes if shape is not None]
    if known:
        return ", ".join(known)
    return f"{len(data)} examples" if hasattr(data, "__len__") else type(data).__name__
