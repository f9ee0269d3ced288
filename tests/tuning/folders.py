"""A trial's folder, for tests of how it travels."""

from pathlib import Path


def write(folder: Path, text: str) -> None:
    """Save something, and be half through with saving something else."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / "last.json").write_text(text)
    (folder / ".last.json.tmp").write_text("half")


def read(folder: Path) -> str:
    """What was saved."""
    return (folder / "checkpoints" / "last.json").read_text()
