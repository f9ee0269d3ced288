"""A function is another one when it does something else, not when it is written otherwise."""

import functools
import importlib
import linecache
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

from luthier.hashing import bound, bound_values, read_values, source_hash


def loaded(folder: Path, name: str, text: str) -> Any:
    """What a file of this text defines as `f`."""
    path = folder / f"{name}.py"
    path.write_text(text)
    module = ModuleType("same")
    exec(compile(text, str(path), "exec"), vars(module))
    return vars(module)["f"]


WAYS = {
    "plain": "def f(x):\n    return x + 1\n",
    "commented": "def f(x):\n    # one more\n    return x + 1  # so\n",
    "documented": 'def f(x):\n    """One more."""\n    return (x\n            + 1)\n',
    "other": "def f(x):\n    return x + 2\n",
    "helped": "def g():\n    return 1\n\ndef f(x):\n    return x + g()\n",
    "helped_otherwise": "def g():\n    return 2\n\ndef f(x):\n    return x + g()\n",
    "inner": "def g():\n    return 1\n\ndef f(x):\n    return [x + g() for _ in x]\n",
    "inner_otherwise": "def g():\n    return 2\n\ndef f(x):\n    return [x + g() for _ in x]\n",
    "circle": "def g():\n    return f\n\ndef f(x):\n    return g()\n",
}


def test_only_what_is_done_counts(tmp_path: Path) -> None:
    hashes = {name: source_hash(loaded(tmp_path, name, text)) for name, text in WAYS.items()}
    assert hashes["plain"] == hashes["commented"] == hashes["documented"]
    assert len(set(hashes.values())) == len(WAYS) - 2


class Block:
    def size(self) -> int:
        """Its size."""
        return 3


class Net:
    def build(self) -> Block:
        return Block()


def test_a_class_has_its_helpers_in_every_process() -> None:
    cloudpickle.register_pickle_by_value(__import__(__name__))
    try:
        again = cloudpickle.loads(cloudpickle.dumps(Net))
    finally:
        cloudpickle.unregister_pickle_by_value(__import__(__name__))
    assert source_hash(Net) == source_hash(again) != source_hash(Block)


def kept(function: Any, **_: Any) -> Any:
    return function


def test_of_a_lambda_only_itself_counts() -> None:
    one = kept(lambda x: x + 1, trials=3)
    same = kept(lambda x: x + 1, trials=4)
    other = kept(lambda x: x + 2, trials=3)
    pair = [lambda x: x + 1, lambda x: x + 2]
    assert source_hash(one) == source_hash(same) != source_hash(other)
    assert source_hash(pair[0]) != source_hash(pair[1])


@pytest.mark.parametrize("thing", [print, functools.partial(print, 1), 3])
def test_what_has_no_source_has_a_hash(thing: Any) -> None:
    assert len(source_hash(thing)) == 16


class Goal:
    def __init__(self, goal: float) -> None:
        self.goal, self.net = goal, Net

    def run(self, trial: Any) -> float:
        return self.goal


class Called:
    def __init__(self) -> None:
        self.goal, self.data, self.mapped, self.one = 0.25, np.zeros((2, 3)), torch.zeros(2, 3), torch.tensor(1.0)

    def __call__(self, trial: Any) -> float:
        return self.goal


def test_what_a_function_is_given_is_told() -> None:
    def made(goal: float, act: Callable[..., Any]) -> Any:
        def run(trial: Any, scale: int) -> Any:
            return goal, act

        return run

    name = f"{__name__}.Net"
    assert bound_values(Goal(0.5).run) == {"goal": 0.5, "net": name}
    assert bound_values(made(0.5, Net)) == {"act": name, "goal": 0.5}
    assert bound_values(functools.partial(made(0.5, Net), scale=(1, {"a": None}))) == {
        "act": name,
        "goal": 0.5,
        "scale": [1, {"a": None}],
    }
    assert bound_values(functools.partial(print, [1] * 1000, Path())) == {
        "0": "builtins.list",
        "1": "pathlib.PosixPath",
    }
    assert bound_values(print) == bound_values(Net) == {}
    assert bound_values(Called()) == {
        "goal": 0.25,
        "data": "array 2x3",
        "mapped": "array 2x3",
        "one": "array of one number",
    }
    assert (
        bound(functools.partial(print, 1)) == bound(functools.partial(print, 1)) != bound(functools.partial(print, 2))
    )
    assert "secret" not in str(bound(functools.partial(print, "secret")))


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


def test_a_decorated_function_is_told_by_what_it_wraps() -> None:
    def one() -> Any:
        return Block

    def other() -> Any:
        return Net

    assert source_hash(decorated(one)) == source_hash(one) != source_hash(decorated(other))


CONSTANTS = """
import math
SCALE, NAMES, DATA, OTHER, lr = {scale}, ["a", {{"b": (1, 2)}}], list(range(1000)), 3, 5
class Net:
    def size(self):
        return NAMES
def g():
    return Net().size()
def f(trial):
    def inner():
        return SCALE * trial.lr
    return inner() + g() + DATA[0] + math.pi
"""


def test_what_is_read_are_values_that_the_code_and_its_helpers_name(tmp_path: Path) -> None:
    found, changed = (read_values(loaded(tmp_path, f"m{scale}", CONSTANTS.format(scale=scale))) for scale in (1, 100))
    assert set(found) == {"SCALE", "NAMES"}
    assert found["SCALE"] != changed["SCALE"]
    assert found["NAMES"] == changed["NAMES"]
    assert read_values(print) == read_values(functools.partial(print)) == {}


def test_what_holds_itself_is_no_plain_value(tmp_path: Path) -> None:
    text = "loop = [1]\nloop.append(loop)\nnames = {'a': 1}\nnames['b'] = names\nplain = [[1]]\n"
    read = read_values(loaded(tmp_path, "loops", f"{text}def f():\n    return loop, names, plain\n"))
    assert list(read) == ["plain"]
    loop: list[Any] = [1]
    loop.extend([loop] * 50)
    assert set(bound(lambda: loop)) == {"loop"}
    assert bound(lambda: loop) != bound(functools.partial(print, loop))


def test_what_is_read_of_a_packages_modules_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("from . import settings\n")
    (tmp_path / "own_package" / "settings.py").write_text(
        "import own_package, os\nLR, OTHER = 0.1, 3\nos_name = os.name\n"
    )
    read = "own_package.settings.LR, own_package.settings.own_package, os"
    text = f"import own_package.settings\ndef f():\n    return {read}\n"
    assert list(read_values(loaded(tmp_path, "script", text))) == ["own_package.settings.LR"]


def test_what_is_read_in_other_files_of_ones_own_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    own = "import own_settings\nfrom own_model import build\nimport numpy as np, json, luthier\n"
    text = f"{own}def f(trial):\n    return build(own_settings.SCALE) + np.pi + json.JSONDecoder() + luthier.Recipe()\n"

    def read(scale: float, plus: int) -> dict[str, str]:
        (tmp_path / "own_settings.py").write_text(f"SCALE = {scale}\nOTHER = 3\n")
        (tmp_path / "own_model.py").write_text(f"def build(x):\n    return x + {plus}  # so much\n")
        for name in ("own_settings", "own_model"):
            sys.modules.pop(name, None)
        linecache.clearcache()
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        return read_values(loaded(tmp_path, "script", text))

    first, scaled, edited = read(1.0, 1), read(2.0, 1), read(1.0, 2)
    assert list(first) == ["build", "own_settings.SCALE"]
    assert [name for name in first if first[name] != scaled[name]] == ["own_settings.SCALE"]
    assert [name for name in first if first[name] != edited[name]] == ["build"]
