# SPDX-License-Identifier: BSD-3-Clause
"""Training of a network on flows: `run.fit_network` takes rows and settings, and returns what was learned."""
