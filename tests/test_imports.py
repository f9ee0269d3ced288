"""The direction of imports, and what the first import costs: data flows one way through the house."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import luthier

SOURCE = Path(luthier.__file__).parent
CLI = {"cli", "commands", "options"}
FORBIDDEN = {
    "training": {"doctor", "tuning", "show", "tasks", "fitting", "record", "integrations"} | CLI,
    "data": {"training", "doctor", "tuning", "show", "tasks", "fitting", "record", "task", "recipe"} | CLI,
    "nets": {"doctor", "tuning", "show", "tasks", "fitting", "record", "task", "recipe", "data"} | CLI,
    "show": {"doctor", "fitting", "tasks"} | CLI,
    "tuning": {"show"} | CLI,
}
FORBIDDEN["doctor/symptoms"] = {"training", "tuning", "show", "tasks", "fitting", "record", "task", "data", "nets"}
ALLOWED = {f"tuning/{name}.py imports luthier.show" for name in ("study", "tune")}  # at the moment of the call


def imports(path, types_too):
    """Modules of luthier that a file imports, as the second part of their dotted names."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if not types_too and id(node) in guarded:
            continue
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "luthier" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_rooms_import_in_one_direction(room):
    found = {
        f"{path.relative_to(SOURCE)} imports luthier.{name}"
        for path in sorted((SOURCE / room).rglob("*.py"))
        for name in imports(path, types_too=False)
        if name in FORBIDDEN[room]
    }
    assert found <= ALLOWED


def test_the_test_of_directions_sees_imports():
    assert "recipe" in set(imports(SOURCE / "record.py", types_too=False))
    assert "task" in set(imports(SOURCE / "record.py", types_too=True))


def test_importing_luthier_and_its_help_do_not_import_torch():
    code = (
        "import sys, luthier, luthier.recipe, luthier.cli\n"
        "try: luthier.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'optuna', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_public_name_can_be_imported():
    for name in luthier.__all__:
        assert getattr(luthier, name) is not None
    assert sorted(luthier._HOMES) == sorted(set(luthier.__all__) - {"__version__"})


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fti'"):
        _ = luthier.fti


def test_rules_read_vitals_only():
    """No rule touches a live model: none imports torch or what measures."""
    for path in (SOURCE / "doctor" / "symptoms").glob("*.py"):
        text = path.read_text()
        assert "import torch" not in text, path.name
        assert "doctor.measure" not in text, path.name


def test_data_sets_are_reached_without_an_import_of_their_own():
    code = "import luthier; print('mnist' in luthier.data.DATA_SETS, callable(luthier.tasks.load))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True True\n"
