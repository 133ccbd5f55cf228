# SPDX-License-Identifier: BSD-3-Clause
"""What model files hold of each kind of detector: a module per kind, with ``stored``, ``row_format`` and ``Reader``."""
