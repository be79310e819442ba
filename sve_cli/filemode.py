"""Files as the user's other files are: safetensors writes them for their owner alone."""

from __future__ import annotations

from pathlib import Path


def as_usual(path: Path) -> None:
    """Give a file that was just written the mode that a new file has here."""
    fresh = path.with_name(f".{path.name}.mode")
    fresh.touch(mode=0o666)
    mode = fresh.stat().st_mode
    fresh.unlink()
    path.chmod(mode)
