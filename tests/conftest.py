import os
from pathlib import Path

# Two OpenMP threads that share a busy core train four times slower than one; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Lets scikit-learn's estimator checks include the one on array API input; read when scipy is imported.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def write(tmp_path):
    """Write bytes as a capture and return its path."""

    def write(data, name="capture.pcap"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def real_captures():
    """Return the real captures beside the checkout, none where the folder is absent."""
    return sorted(SHARED.glob("*/*.pcap"))
