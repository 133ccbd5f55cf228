# SPDX-License-Identifier: BSD-3-Clause
"""Data: traffic written on the spot for examples and tests."""

from sklearn_docids.datasets._synthetic import make_traffic

__all__ = ["make_traffic"]
