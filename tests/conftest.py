import hashlib
import os
import shutil
import signal
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Two OpenMP threads that share a busy core train four times slower than one; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Lets scikit-learn's estimator checks include the one on array API input; read when scipy is imported.
os.environ.setdefault("SCIPY_ARRAY_API", "1")


def numba_cache():
    """Return a folder for compiled kernels of exactly these sources.

    numba compiles a kernel anew when its own file has changed, not when a file it calls has: tests would run the old
    code.
    """
    sources = sorted((ROOT / "sklearn_docids" / "capture").glob("*.py"))
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = ROOT / ".numba_cache"
    for old in folder.glob("*"):
        if old.name != version:
            shutil.rmtree(old, ignore_errors=True)
    return folder / version


# A shell starts what runs in the background with Ctrl-C ignored: tests of it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("NUMBA_CACHE_DIR", str(numba_cache()))

import pytest  # noqa: E402 - after the environment

from sklearn_docids._views import network  # noqa: E402 - after the environment

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def few_flows_make_a_network():
    """Let the view of bytes learn from few flows: tests of other things are quick, whatever such a network detects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "MIN_FLOWS", 2)
        yield


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
