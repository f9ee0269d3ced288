"""The command line: parse, call, print. Commands are imported when they are called."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier import __version__
from luthier.errors import LuthierError
from luthier.training.uncompiled import spare_compiler

if TYPE_CHECKING:
    from cyclopts import App

COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("luthier.commands:fit", "Train a task by a recipe."),
    "mend": ("luthier.commands:mend", "Try what the diagnosis prescribes, keep what helps."),
    "tune": ("luthier.commands:tune", "Search for a better recipe, prove it, report it."),
    "check": ("luthier.commands:check", "Examine a task before a long training."),
    "diagnose": ("luthier.commands:diagnose", "What a training suffers from, root cause first."),
    "report": ("luthier.commands:report", "Write the HTML report of a training or study."),
    "eject": ("luthier.ejecting.command:eject", "A run or winner as one plain PyTorch script."),
    "find-lr": ("luthier.commands:find_lr", "Range test: which learning rate to start with."),
    "find-batch-size": ("luthier.commands:find_batch_size", "Which batch size trains fastest."),
    "tasks": ("luthier.commands:tasks", "List the built-in tasks."),
    "parts": ("luthier.commands:parts", "List optimizers, schedules, augmentations and their settings."),
    "fetch": ("luthier.commands:fetch", "Fetch and verify a data set into the cache."),
}
ABOUT = "Train, diagnose, mend and tune PyTorch models. TASK is a built-in name (luthier tasks) or file.py:function."


def main(tokens: Sequence[str] | None = None) -> None:
    """Run the command line; exit 2 on wrong input, 1 on a failing machine, 130 on Ctrl-C."""
    given = list(sys.argv[1:] if tokens is None else tokens)
    if given in ([], ["-h"], ["--help"]):
        print(overview())
        return
    atexit.register(gc.freeze)  # else the interpreter takes a second at its end to look through all of torch
    spare_compiler()
    try:
        command_line()(settings_as_set(given))
    except LuthierError as error:
        sys.exit(_say(error, 2))
    except OSError as error:
        sys.exit(_say(error, 1))
    except KeyboardInterrupt as error:
        sys.exit(_say(error if str(error) else "interrupted", 130))


def overview() -> str:
    """What `luthier --help` says; by hand, since the parser's own help costs 0.1 s of imports."""
    lines = [f"  {name:17}{text}" for name, (_, text) in COMMANDS.items()]
    more = "luthier COMMAND --help tells a command's options, luthier --version the version."
    return "\n".join(["Usage: luthier COMMAND", "", ABOUT, "", "Commands:", *lines, "", more])


def command_line() -> App:
    """The parser; it imports a command when it is called."""
    from cyclopts import App

    app = App(
        name="luthier",
        version=__version__,
        help=ABOUT,
        help_format="plaintext",  # Markdown imports for 50 ms
        suppress_keyboard_interrupt=False,
    )
    for name, (home, text) in COMMANDS.items():
        app.command(home, name=name, help=text)
    return app


def _say(message: object, code: int) -> int:
    print(f"luthier: {message}", file=sys.stderr)
    return code


def settings_as_set(tokens: Sequence[str]) -> list[str]:
    """Rewrite `--schedule.gamma 0.5` as `--set schedule.gamma=0.5`; other tokens stay.

    >>> settings_as_set(["fit", "mnist", "--lr", "0.1", "--model.width", "64", "--schedule.gamma=0.5"])
    ['fit', 'mnist', '--lr', '0.1', '--set', 'model.width=64', '--set', 'schedule.gamma=0.5']
    """
    rewritten: list[str] = []
    waiting: str | None = None
    for token in tokens:
        name = token.removeprefix("--").partition("=")[0]
        if waiting is not None:
            rewritten += ["--set", f"{waiting}={token}"]
            waiting = None
        elif token.startswith("--") and "." in name:
            if "=" in token:
                rewritten += ["--set", _field(name) + token[2 + len(name) :]]
            else:
                waiting = _field(name)
        else:
            rewritten.append(token)
    if waiting is not None:
        raise LuthierError(f"--{waiting} needs a value: --{waiting} VALUE")
    return rewritten


def _field(name: str) -> str:
    return name.replace("-", "_")
