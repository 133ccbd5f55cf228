# SPDX-License-Identifier: BSD-3-Clause
"""From flagged flows to alarms that people and other tools act on."""
