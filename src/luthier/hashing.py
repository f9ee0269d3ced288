"""What tells one function from another in a file."""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from types import CodeType
from typing import Any

_MOST_ITEMS = 100


def source_hash(call: object) -> str:
    """Sixteen hex digits over a callable's source, else over its bytecode, else over its name.

    The functions and classes of its own module that it names count too. Comments, docstrings and the layout do not; of
    a lambda nothing does but itself.
    """
    told: dict[str, tuple[Any, bytes]] = {}
    _tell(call, told)
    return _digest(b"\n".join(said for _, said in told.values()))[:16]


def read_values(call: object) -> dict[str, str]:
    """Hex digits over each thing that a callable, or a helper of its module, reads beside that code, by name.

    Plain values (numbers, texts, None, lists, tuples and dicts of these) of its own module and of others that are
    neither installed nor Python's; functions and classes of such other modules. Names such as `__file__` do not count.
    """
    told: dict[str, tuple[Any, bytes]] = {}
    _tell(call, told)
    found: dict[str, str] = {}
    for target, _ in told.values():
        for name, value in chain.from_iterable(map(_read, _functions(target))):
            if _is_plain(value):
                found[name] = _digest(repr(value).encode())[:8]
            elif _is_of_another_own_module(value, target.__module__):
                found[name] = source_hash(value)
    return dict(sorted(found.items()))


def bound(call: Any) -> dict[str, str]:
    """Eight hex digits over each value of `bound_values`, by name: a file need not hold them, one may be a password."""
    return {name: _digest(repr(value).encode())[:8] for name, value in bound_values(call).items()}


def bound_values(call: Any) -> dict[str, Any]:
    """What a function has besides its source, by name: a partial's arguments, a closure's values, a method's object.

    Plain values as they are; of others what they are.

    >>> bound_values(functools.partial(print, 1, sep="; "))
    {'0': 1, 'sep': '; '}
    """
    found: dict[str, Any] = {}
    while isinstance(call, functools.partial):
        found |= {str(place): value for place, value in enumerate(call.args)} | call.keywords
        call = call.func
    if inspect.ismethod(call):
        found |= getattr(call.__self__, "__dict__", {})
        call = call.__func__
    elif not inspect.isroutine(call) and not inspect.isclass(call):
        found |= getattr(call, "__dict__", {})
    code = getattr(call, "__code__", None)
    for name, cell in zip(code.co_freevars, call.__closure__ or (), strict=True) if code is not None else ():
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return {name: _shown(value) for name, value in found.items()}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _shown(value: Any, above: tuple[int, ...] = ()) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, Mapping)) and _is_small(value, above):
        if isinstance(value, Mapping):
            return {str(name): _shown(item, (*above, id(value))) for name, item in value.items()}
        return [_shown(item, (*above, id(value))) for item in value]
    if isinstance(getattr(value, "shape", None), tuple):  # in a worker it may be mapped, and of another class
        return f"array {'x'.join(map(str, value.shape)) or 'of one number'}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _is_small(value: Any, above: tuple[int, ...]) -> bool:
    """Whether a collection in others can be taken whole: it has few items, and does not hold itself."""
    return len(value) <= _MOST_ITEMS and id(value) not in above


def _is_plain(value: Any, above: tuple[int, ...] = ()) -> bool:
    if isinstance(value, (list, tuple, dict)):
        named = not isinstance(value, dict) or all(isinstance(name, str) for name in value)
        items = value.values() if isinstance(value, dict) else value
        return named and _is_small(value, above) and all(_is_plain(item, (*above, id(value))) for item in items)
    return value is None or isinstance(value, (bool, int, float, str))


def _tell(call: object, told: dict[str, tuple[Any, bytes]]) -> None:
    """Add what a callable does, and those of its module that it names."""
    target: Any = inspect.unwrap(call) if inspect.isroutine(call) else call if inspect.isclass(call) else type(call)
    name = f"{target.__module__}.{target.__qualname__}"
    if name in told:
        return
    try:
        said = _said(target)
    except (OSError, TypeError, SyntaxError):
        code = getattr(call, "__code__", None)
        said = name.encode() if code is None else code.co_code + repr((code.co_names, _plain(code))).encode()
    told[name] = target, said
    for helper in _helpers(target):
        _tell(helper, told)


def _helpers(target: Any) -> Iterator[Any]:
    """The functions and classes of the target's module that its code names, the same in any process."""
    for function in _functions(target):
        for name in sorted(_names(function.__code__)):
            found = function.__globals__.get(name)
            if (inspect.isfunction(found) or inspect.isclass(found)) and found.__module__ == target.__module__:
                yield found


def _functions(target: Any) -> Iterator[Any]:
    """A function, or those of a class."""
    return filter(inspect.isfunction, [target, *vars(target).values()] if inspect.isclass(target) else [target])


def _read(function: Any) -> Iterator[tuple[str, Any]]:
    """The globals that a function reads, and what it reads of modules that are somebody's own."""
    for name in sorted(_globals(function.__code__) & function.__globals__.keys()):
        value = function.__globals__[name]
        if inspect.ismodule(value):
            yield from _read_of(value, name, _names(function.__code__))
        elif not name.startswith("__"):
            yield name, value


def _read_of(module: Any, path: str, names: set[str], above: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """What of a module, and of modules in it, goes by one of the names; nothing where it is not somebody's own."""
    if not _is_own(module) or module in above:
        return
    for name in sorted(names & vars(module).keys()):
        value = vars(module)[name]
        if inspect.ismodule(value):
            yield from _read_of(value, f"{path}.{name}", names, (*above, module))
        else:
            yield f"{path}.{name}", value


def _is_of_another_own_module(value: Any, module: str) -> bool:
    """Whether it is a function or a class of another module than this one, which is somebody's own, too."""
    is_code = inspect.isfunction(value) or inspect.isclass(value)
    return is_code and value.__module__ != module and _is_own(sys.modules.get(value.__module__))


def _is_own(module: Any) -> bool:
    """Whether a module is neither installed nor Python's."""
    path = getattr(module, "__file__", None)
    if path is None or module.__name__.partition(".")[0] == "luthier":
        return False
    parts = Path(path).parts
    installed = {"site-packages", "dist-packages"} & set(parts)
    return not installed and not Path(path).is_relative_to(sysconfig.get_paths()["stdlib"])


def _globals(code: CodeType) -> set[str]:
    """The globals that a function's code reads, that of inner functions included; attributes do not count."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_globals(inner) for inner in code.co_consts if inspect.iscode(inner)))


def _names(code: CodeType) -> set[str]:
    """The names in a function's code, that of inner functions included."""
    return set(code.co_names).union(*(_names(inner) for inner in code.co_consts if inspect.iscode(inner)))


@lru_cache(maxsize=256)  # parsing a module takes 20 ms, and a study's trials ask again and again
def _said(target: Any) -> bytes:
    """What the source says.

    Raises:
        SyntaxError: it cannot be read alone, as a lambda in the middle of a call.
    """
    tree: ast.AST = ast.parse(textwrap.dedent(inspect.getsource(target)))
    if getattr(target, "__name__", "") == "<lambda>":
        lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
        if len(lambdas) != 1:
            raise SyntaxError("which of several lambdas it is cannot be told")
        tree = lambdas[0]
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree).encode()


def _plain(code: CodeType) -> list[Any]:
    """Constants without inner code, whose text has an address."""
    return [constant for constant in code.co_consts if not inspect.iscode(constant)]
