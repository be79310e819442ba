"""Export targets: what writes artifacts. `sve_cli.certify` proves them."""

from __future__ import annotations

from sve_cli.export.artifact import Artifact, Options, Source, Target
from sve_cli.export.complete import require_complete

__all__ = ["Artifact", "Options", "Source", "Target", "require_complete"]
