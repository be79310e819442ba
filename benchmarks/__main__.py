"""`make bench`: every benchmark in its short form. Figures are ratios measured in one run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = ("decomposition.py",)


def main() -> int:
    """Run them one after another; the first failure ends it."""
    for script in SCRIPTS:
        code = subprocess.call([sys.executable, str(Path(__file__).parent / script)])
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
