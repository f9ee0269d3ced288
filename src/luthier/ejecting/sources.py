"""The source of functions and classes with everything that it needs, so that it can stand in a script of its own."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import symtable
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch

from luthier.errors import LuthierError

_OF_THE_FILE = ("__file__", "__spec__", "__package__", "__doc__", "__path__")
_WHOLE = ("torch", "numpy")  # packages that import what is in them
_LITERALS = (int, float, str, bytes, bool, tuple, list, dict, set, frozenset, type(None))


class EjectError(LuthierError):
    """A run that cannot be written as a plain script: which part of it, and what to do."""


@dataclass
class Sources:
    """Blocks of source code in the order in which they must stand, and the imports that they need."""

    blocks: dict[str, str] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)
    objects: dict[str, Any] = field(default_factory=dict)

    def add(self, target: Any, what: str) -> str:
        """Take in a function or class with all that it refers to; returns the name that it has in the script.

        Raises:
            EjectError: its source is not at hand, or refers to something that a script cannot hold.
        """
        name = getattr(target, "__name__", "")
        if name in self.blocks:
            if self.objects.get(name, target) is not target:
                raise EjectError(f"your code and the script both have something called {name!r}: rename yours")
            return name
        self.objects[name] = target
        text = _source(target, what)
        if name == "<lambda>":
            raise EjectError(f"{what} is a lambda, whose source has no name: write it as a function with def")
        names = _namespace(target)
        if not _is_luthier(target.__module__):
            _check_inner_imports(text, what)
        self.blocks[name] = ""  # so that recursion ends
        for needed in _free_names(text):
            if needed != name and not self._known(needed, names):
                self._need(needed, names, target, what, text)
        del self.blocks[name]  # after what it needs
        self.blocks[name] = _plain(text) if _is_luthier(target.__module__) else text
        return name

    def _known(self, name: str, names: dict[str, Any]) -> bool:
        if name in self.objects and self.objects[name] is not names.get(name, self.objects[name]):
            return False  # another one of this name
        return name in self.blocks or (name not in names and hasattr(builtins, name))

    def _need(self, name: str, names: dict[str, Any], target: Any, what: str, text: str) -> None:
        if name in _OF_THE_FILE:
            raise EjectError(f"{what} refers to {name}, which is another one in a script: use something else")
        if name not in names:
            raise EjectError(f"{what} refers to {name!r}, which is not found in {target.__module__}: define it there")
        value = names[name]
        own = getattr(value, "__module__", None) == target.__module__
        if isinstance(value, ModuleType):
            _refuse_luthier(value.__name__, name, what)
            self.imports.add(f"import {value.__name__}" + ("" if value.__name__ == name else f" as {name}"))
            self.imports |= {f"import {module}" for module in _submodules(text, name, value)}
        elif isinstance(value, torch.dtype) or _is_literal(value):
            self.blocks[name] = f"{name} = {value!r}"
        elif isinstance(value, type) and issubclass(value, LuthierError) and _is_luthier(target.__module__):
            return  # becomes a ValueError
        elif own or (_is_luthier(target.__module__) and _is_luthier(getattr(value, "__module__", ""))):
            if not isinstance(value, (type, FunctionType)) or value.__name__ != name:
                raise EjectError(f"{what} refers to {name} = {value!r}, which a script cannot hold: make it a function")
            self.add(value, what)
        elif _is_of_the_user(getattr(value, "__module__", None)) and getattr(value, "__name__", None) == name:
            _refuse_luthier(value.__module__, name, what)
            self.add(value, what)  # from a file beside it, which need not be there when the script runs
        else:
            self._import(value, name, what)

    def _import(self, value: Any, name: str, what: str) -> None:
        home, there = getattr(value, "__module__", None), getattr(value, "__name__", None)
        if not home or there is None or getattr(sys.modules.get(home), there, None) is not value:
            raise EjectError(f"{what} refers to {name} = {value!r}, which a script cannot hold: make it a literal")
        _refuse_luthier(home, name, what)
        public = "torch" if home.startswith("torch.") and getattr(torch, there, None) is value else home
        self.imports.add(f"from {public} import {there}" + ("" if there == name else f" as {name}"))


def _source(target: Any, what: str) -> str:
    try:
        text = inspect.getsource(target)
    except (OSError, TypeError):
        raise EjectError(f"{what} has no source that can be read: define it in a file") from None
    plain = textwrap.dedent(text).rstrip()
    if plain.startswith(("def ", "class ", "@")) or getattr(target, "__name__", "") == "<lambda>":
        return plain
    try:
        (block,) = ast.parse("if True:\n" + text).body
        return ast.unparse(block.body[0])  # type: ignore[attr-defined]
    except (SyntaxError, ValueError):
        raise EjectError(f"{what} cannot be read alone: define it at the top of a file, with def or class") from None


def _check_inner_imports(text: str, what: str) -> None:
    """Whether a definition imports Luthier, or what is beside its file, when it is called.

    Raises:
        EjectError: it does.
    """
    for node in ast.walk(ast.parse(text)):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if any(_is_luthier(module) for module in modules) or (isinstance(node, ast.ImportFrom) and node.level):
            raise EjectError(f"{what} imports {modules[0] or '.'} in its body, which a script does not have: define it")


def _submodules(text: str, name: str, module: ModuleType) -> set[str]:
    """The submodules that a definition reaches through a package's name: `import xml` does not bring xml.dom."""
    if module.__name__ != name or name in _WHOLE:
        return set()
    chains = {ast.unparse(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    there = {chain for chain in chains if isinstance(sys.modules.get(chain), ModuleType)}
    return {chain for chain in there if chain.startswith(f"{name}.")}


def _is_of_the_user(module: str | None) -> bool:
    """Whether a module is a file of the user's, not one of a library that is installed."""
    if module is None or _is_luthier(module):
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and "site-packages" not in file and not file.startswith(sys.base_prefix)


def _namespace(target: Any) -> dict[str, Any]:
    """The names that code of a function or class sees outside itself."""
    target = inspect.unwrap(target)  # a decorator's wrapper sees the names of its own file
    names = dict(vars(sys.modules[target.__module__])) if target.__module__ in sys.modules else {}
    if isinstance(target, FunctionType):
        names |= target.__globals__
        cells = zip(target.__code__.co_freevars, target.__closure__ or (), strict=True)
        names |= {name: cell.cell_contents for name, cell in cells}
    return names


def _free_names(text: str) -> list[str]:
    """Names that a definition takes from outside, annotations left out."""
    tree = _Bare().visit(ast.parse(text))
    table = symtable.symtable(ast.unparse(tree), "source", "exec")
    outside = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    for child in _tables(table):
        outside |= {symbol.get_name() for symbol in child.get_symbols() if symbol.is_global()}
    return sorted(outside - {"super", "__class__", "__name__"})  # the script has a name of its own


def _tables(table: symtable.SymbolTable) -> list[symtable.SymbolTable]:
    return [each for child in table.get_children() for each in (child, *_tables(child))]


class _Bare(ast.NodeTransformer):
    """Removes annotations: in the script they are not evaluated."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(0)
        return self.generic_visit(node)


def _is_literal(value: Any) -> bool:
    if not isinstance(value, _LITERALS):
        return False
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False


def _is_luthier(module: str) -> bool:
    return module == "luthier" or module.startswith("luthier.")


def _refuse_luthier(module: str, name: str, what: str) -> None:
    file = getattr(sys.modules.get(module), "__file__", None)
    uses = _is_luthier(module) or (
        _is_of_the_user(module) and re.search(r"^\s*(import|from) luthier", Path(str(file)).read_text(), re.M)
    )
    if uses:
        raise EjectError(
            f"{what} refers to {name!r} of {module}, which needs Luthier: "
            "define what it needs in the same file, or in one that does not import luthier"
        )


def _plain(text: str) -> str:
    """A definition of Luthier's as a script has it: docstrings of one line, plain errors."""
    lines = text.splitlines()
    for node in reversed([n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]):
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and first.end_lineno != first.lineno:
            lines[first.lineno - 1] = lines[first.lineno - 1].rstrip() + '"""'
            del lines[first.lineno : first.end_lineno]
    return re.sub(r"\b(DataError|LuthierError)\b", "ValueError", "\n".join(lines))
