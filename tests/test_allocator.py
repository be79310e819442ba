"""Freed memory stays while a loop runs, and goes back to the system afterwards."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

from sve_cli import allocator

pytestmark = pytest.mark.skipif(sys.platform != "linux" or allocator._glibc() is None, reason="Only glibc has these settings.")


def faults(megabytes: int) -> int:
    """Pages fetched while tensors of this size come and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(megabytes * 2**18).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def takes_the_place() -> None:
    pages = 48 * 256
    with allocator.kept_pages():
        for _ in range(4):  # small things that come to lie between the first tensors make other places
            faults(48)
        with allocator.kept_pages():
            assert faults(48) < pages / 4
        assert faults(48) < pages / 4  # leaving the inner one changes nothing
    assert faults(48) > pages  # fetched again


def test_a_tensor_takes_the_place_of_the_last_one() -> None:
    """In a process of its own: in a heap with the holes of other tests the place may be a few bytes too small."""
    code = f"import runpy; runpy.run_path({__file__!r})['takes_the_place']()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_settings_go_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="^x$"), allocator.kept_pages():
        raise ValueError("x")
    assert allocator._depth == 0
    assert faults(48) > 48 * 256


def test_what_is_free_and_still_held_is_handed_back() -> None:
    spare = allocator.Spare(share=0.0, least=2**22)
    if spare.library is None:
        pytest.skip("This glibc does not say how much memory is in use.")
    with allocator.kept_pages():
        tensors = [torch.zeros(2**18) for _ in range(64)]  # 64 MB, of which every second one stays
        del tensors[::2]
        held = spare._resident()
        spare.limit()
        assert held - spare._resident() > 20e6
        before = spare._resident()
        spare.share = 100.0
        del tensors
        spare.limit()  # less than is allowed: nothing is handed back
        assert before - spare._resident() < 5e6
