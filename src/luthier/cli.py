"""The command line: parse, call, print. Commands are imported when they are called."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App

from luthier import __version__
from luthier.errors import LuthierError

app = App(
    name="luthier",
    version=__version__,
    help_format="plaintext",  # Markdown would cost 40 ms of imports
    help="Train, diagnose, mend and tune PyTorch models. TASK is a built-in name (luthier tasks) or file.py:function.",
)
app.command("luthier.commands:fit", name="fit", help="Train a task by a recipe.")
app.command("luthier.commands:tune", name="tune", help="Search for a better recipe, prove it, report it.")
app.command("luthier.commands:report", name="report", help="Write the HTML report of a training or study.")
app.command("luthier.commands:find_lr", name="find-lr", help="Range test: which learning rate to start with.")
app.command("luthier.commands:find_batch_size", name="find-batch-size", help="Which batch size trains fastest.")
app.command("luthier.commands:tasks", name="tasks", help="List the built-in tasks.")
app.command(
    "luthier.commands:parts", name="parts", help="List optimizers, schedules, augmentations and their settings."
)
app.command("luthier.commands:fetch", name="fetch", help="Fetch and verify a data set into the cache.")


def main(tokens: Sequence[str] | None = None) -> None:
    """Run the command line; exit 2 on wrong input, 1 on a failing machine, 130 on Ctrl-C."""
    try:
        app(settings_as_set(sys.argv[1:] if tokens is None else tokens))
    except LuthierError as error:
        sys.exit(_say(error, 2))
    except OSError as error:
        sys.exit(_say(error, 1))
    except KeyboardInterrupt as error:
        sys.exit(_say(error if str(error) else "interrupted", 130))


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
