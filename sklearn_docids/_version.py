# SPDX-License-Identifier: BSD-3-Clause
"""The version, in a room of its own: modules that name it need not import the package's face."""

__version__ = "0.1.0"
