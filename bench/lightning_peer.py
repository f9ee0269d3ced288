"""Lightning in an environment of its own, driven from here line by line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any

import torch
from contenders import Setting

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-bench"
PACKAGE = "lightning==2.6.6"


class NotAvailable(Exception):
    """Lightning cannot be installed or started here; the message says why."""


def prepare() -> Path:
    """The environment's interpreter; made on first use.

    It looks into our own environment for everything that it has, so that torch is the very same build for both and is
    not downloaded again; only Lightning and what we do not have is installed beside it.

    Raises:
        NotAvailable: pip failed.
    """
    python = ENVIRONMENT / "bin" / "python"
    ready = ENVIRONMENT / ".ready"
    if ready.exists() and ready.read_text() == PACKAGE:
        return python
    print(f"installing {PACKAGE} into {ENVIRONMENT.name} (once) ...", flush=True)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    (ENVIRONMENT / ".gitignore").write_text("*\n")
    place = sysconfig.get_path("purelib", vars={"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)})
    (Path(place) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotAvailable(f"pip install {PACKAGE} failed: {_last_line(done.stderr)}")
    ready.write_text(PACKAGE)
    return python


class Lightning:
    """A process that trains when it is asked to; between its turns it sleeps.

    Raises:
        NotAvailable: it did not start.
    """

    def __init__(self) -> None:
        self.files: dict[int, str] = {}
        self.folder = tempfile.TemporaryDirectory(prefix="luthier-bench-")
        self.log = (Path(self.folder.name) / "log").open("w+")
        paths = [str(ROOT / "src"), str(ROOT / "bench")]
        self.process = subprocess.Popen(
            [prepare(), str(ROOT / "bench" / "lightning_epoch.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        self.versions: dict[str, str] = self._answer()

    def seconds_per_epoch(self, setting: Setting, kind: str) -> float:
        """One training; `kind` is "defaults" or "bare"."""
        order = {
            "network": setting.network,
            "batch_size": setting.batch_size,
            "epochs": setting.epochs,
            "kind": kind,
            "data": self._file(setting),
            "threads": torch.get_num_threads(),
        }
        if self.process.stdin is None:
            raise NotAvailable("Lightning's process has no input")
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        self.log.close()
        self.folder.cleanup()

    def _file(self, setting: Setting) -> str:
        key = len(setting.train[0])
        if key not in self.files:
            self.files[key] = str(Path(self.folder.name) / f"{key}.pt")
            torch.save((setting.train, setting.val), self.files[key])
        return self.files[key]

    def _answer(self) -> Any:
        line = self.process.stdout.readline() if self.process.stdout is not None else ""
        if not line:
            self.log.seek(0)
            raise NotAvailable(f"Lightning ended early: {_last_line(self.log.read())}")
        return json.loads(line)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


if __name__ == "__main__":
    sys.exit("run bench/speed.py")
