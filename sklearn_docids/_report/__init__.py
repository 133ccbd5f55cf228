# SPDX-License-Identifier: BSD-3-Clause
"""Pages for people: one HTML file each, which needs nothing beside it and runs no script."""
