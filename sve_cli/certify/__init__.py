"""Certificates: an exported artifact, reloaded in a fresh process, against the live object it claims to be."""

from __future__ import annotations

from sve_cli.certify.certificate import Certificate, Gaps, compare
from sve_cli.certify.export import export_and_certify
from sve_cli.certify.judge import certify, certify_all
from sve_cli.certify.process import Answer, Questions, Reload, in_fresh_process

__all__ = [
    "Answer",
    "Certificate",
    "Gaps",
    "Questions",
    "Reload",
    "certify",
    "certify_all",
    "compare",
    "export_and_certify",
    "in_fresh_process",
]
