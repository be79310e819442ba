"""Optional packages: asked for by name before any work, with the command that installs them."""

from __future__ import annotations

from importlib.util import find_spec

from sve_cli.errors import SveError


def require_packages(target: str, extra: str, *packages: str) -> None:
    """Refuse a target whose packages are not installed.

    Raises:
        SveError: naming those that are absent.
    """
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        verb = "is" if len(absent) == 1 else "are"
        raise SveError(
            f"The target {target} needs {' and '.join(absent)}, which {verb} not installed.",
            f"pip install 'sve-cli[{extra}]'",
        )
