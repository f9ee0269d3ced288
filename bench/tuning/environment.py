"""The environment of Ray and matplotlib, beside ours.

Not in ours: pandas, which Ray brings, is imported by every `import optuna` that finds it, so that start-up of all
others would be slower than their users see it. It looks into our environment for everything else, so that torch is the
very same build and not downloaded again.
"""

from __future__ import annotations

import subprocess
import sysconfig
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-tune"
READY = ENVIRONMENT / ".ready"


class NotAvailable(Exception):
    """The environment cannot be made here; the message says why."""


def prepare() -> Path:
    """The environment's interpreter; made on first use, and anew when the requirements have changed.

    Raises:
        NotAvailable: pip failed.
    """
    python = ENVIRONMENT / "bin" / "python"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = "\n".join(extras["bench"])
    if READY.exists() and READY.read_text() == wanted:
        return python
    print(f"installing the extra 'bench' into {ENVIRONMENT.name} (once) ...", flush=True)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    (ENVIRONMENT / ".gitignore").write_text("*\n")
    place = sysconfig.get_path("purelib", vars={"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)})
    (Path(place) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [python, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", "-e", ".[bench]"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise NotAvailable(
            f"pip install -e '.[bench]' failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
        )
    READY.write_text(wanted)
    return python
