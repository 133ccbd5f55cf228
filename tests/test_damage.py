"""Damaged captures, many of them: the bounded part of what ``benchmarks/fuzz.py`` does for as long as it is let."""

import os
import subprocess
import sys
from pathlib import Path

import mutations
import pytest


@pytest.mark.parametrize("number", range(len(mutations.CAPTURES)))
def test_the_captures_the_damage_starts_from_are_sound(number):
    assert mutations.check([mutations.CAPTURES[number]], mutations.RULES)


def test_thousands_of_damaged_captures_raise_nothing_but_the_documented_error():
    still_captures = sum(mutations.run(seed) for seed in range(4000))
    assert 2000 < still_captures < 4000  # the damage is neither fatal nor harmless each time


def test_no_kernel_reads_beyond_its_arrays(tmp_path):
    code = (
        "import numba, mutations; from sklearn_docids.capture import _native;"
        "assert numba.config.BOUNDSCHECK and _native.u16.__class__.__name__ == 'CPUDispatcher';"
        "print(sum(mutations.run(seed) for seed in range(1000)))"
    )
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 500
