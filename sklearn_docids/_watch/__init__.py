# SPDX-License-Identifier: BSD-3-Clause
"""Traffic as it comes: sources of packets, the flows that are open, verdicts, and what survives a kill."""
