"""The command `luthier eject`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from luthier.options import whole


def eject(
    run: Path,
    /,
    *,
    task: Annotated[
        str | None, Parameter(help="what was trained: path/to/file.py:function; built-in tasks are found by themselves")
    ] = None,
    trial: Annotated[
        int | None, Parameter(converter=whole, help="this trial of the study; default: the best one")
    ] = None,
    data: Annotated[
        Path | None,
        Parameter(help="write the data to this .npz file, which the script reads; default: the cache's files"),
    ] = None,
) -> None:
    """Write the training or study in RUN as one plain PyTorch script: luthier eject RUN > train.py."""
    from luthier.ejecting.eject import eject as write

    with contextlib.redirect_stdout(sys.stderr):  # what the task prints is no part of the script
        script = write(run, task, trial=trial, data=data)
    sys.stdout.write(script)
