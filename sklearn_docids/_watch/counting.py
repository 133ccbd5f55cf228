# SPDX-License-Identifier: BSD-3-Clause
"""How long verdicts took."""

from __future__ import annotations

import numpy as np

STEP_MS, N_STEPS = 10, 6000  # a minute


class Delays:
    """Times between a fate and the verdict, in steps of 10 ms; longer ones count as a minute."""

    def __init__(self) -> None:
        self._counts = np.zeros(N_STEPS + 1, np.int64)

    def add(self, delays_ns: np.ndarray) -> None:
        """Take more; the clocks of two machines may differ a little."""
        steps = np.clip(delays_ns // (STEP_MS * 10**6), 0, N_STEPS)
        self._counts += np.bincount(steps, minlength=N_STEPS + 1)

    def taken(self) -> dict[str, int]:
        """Return the median and the 99th percentile in ms, rounded up, and begin anew."""
        counts, self._counts = self._counts, np.zeros(N_STEPS + 1, np.int64)
        if not counts.any():
            return {}
        up_to = np.cumsum(counts)
        places = np.searchsorted(up_to, [0.5 * up_to[-1], 0.99 * up_to[-1]])
        return dict(zip(("delay_p50_ms", "delay_p99_ms"), ((places + 1) * STEP_MS).tolist(), strict=True))
