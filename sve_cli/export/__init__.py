"""Export targets: what writes artifacts. `sve_cli.certify` proves them."""

from __future__ import annotations

from sve_cli.export.artifact import Artifact, require_complete

__all__ = ["Artifact", "require_complete"]
