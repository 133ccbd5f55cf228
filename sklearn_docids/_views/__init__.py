# SPDX-License-Identifier: BSD-3-Clause
"""Views of flows: what one of them says about how unusual a flow is, and why."""
