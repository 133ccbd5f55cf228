# SPDX-License-Identifier: BSD-3-Clause
"""The command line ``docids``: its commands, and what they print."""

from sklearn_docids.cli._main import main

__all__ = ["main"]
