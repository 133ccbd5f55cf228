# SPDX-License-Identifier: BSD-3-Clause
"""The networks: layers, losses, and how a fitted one scores. Knows nothing of training or of scikit-learn."""
