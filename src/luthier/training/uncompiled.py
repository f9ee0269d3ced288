"""Optimizers without torch's compiler, for as long as nothing is compiled.

torch (seen in 2.13) imports `torch._dynamo`, and with it SymPy, to make the first optimizer: only to tell the compiler
to stay out of four methods, and to break graphs at each step. That takes about as long as importing torch itself. While
nobody has imported the compiler nothing is compiled, and there is nobody to tell.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"


def spare_compiler() -> None:
    """Let torch's optimizers do without the compiler until somebody imports it; from then on they are torch's own.

    For processes of our own. What does not look as expected (another torch) stays as it is, only slower to start.
    """
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, _WithTorch())
    elif _COMPILER not in sys.modules:
        _spare(sys.modules["torch"])


class _WithTorch(MetaPathFinder):
    """Finds torch as others would, once, and spares its compiler as soon as it is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                spare_compiler()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _spare(torch: Any) -> None:
    base = torch.optim.Optimizer
    classes = [each for each in vars(torch.optim).values() if isinstance(each, type) and issubclass(each, base)]
    for owner in dict.fromkeys([base, *classes]):
        for name, method in list(vars(owner).items()):
            if _COMPILER in getattr(getattr(method, "__code__", None), "co_names", ()) and hasattr(
                method, "__wrapped__"
            ):
                setattr(owner, name, _spared(method, torch, steps=name == "step"))


def _spared(method: Any, torch: Any, steps: bool) -> Callable[..., Any]:
    """A method that is torch's own once the compiler is there, and before that what torch wraps.

    A step takes place without gradients, unless it is differentiable itself: the rest of what torch's wrapper does.
    """
    plain = method.__wrapped__

    @functools.wraps(plain)
    def spared(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _COMPILER in sys.modules:
            return method(self, *args, **kwargs)
        if not steps:
            return plain(self, *args, **kwargs)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return plain(self, *args, **kwargs)

    return spared
