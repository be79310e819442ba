"""Certificates: an exported artifact, reloaded in a fresh process, against the live object it claims to be."""

from __future__ import annotations

from sve_cli.certify.certificate import CERTIFICATE, TOLERANCE, Certificate, Gaps, compare
from sve_cli.certify.export import certify, certify_all, export_and_certify
from sve_cli.certify.process import Answer, Questions, in_fresh_process

__all__ = [
    "CERTIFICATE",
    "TOLERANCE",
    "Answer",
    "Certificate",
    "Gaps",
    "Questions",
    "certify",
    "certify_all",
    "compare",
    "export_and_certify",
    "in_fresh_process",
]
