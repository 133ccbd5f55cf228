# SPDX-License-Identifier: BSD-3-Clause
"""How far training is: steps, losses and the time left, on standard error."""

from __future__ import annotations

from typing import Any

from skorch.callbacks import Callback

from sklearn_docids._training.pairs import batch_bounds
from sklearn_docids.cli._inputs import progress_bar


class TrainingBar(Callback):
    """A bar of the steps of training, with the mean losses of the last epoch."""

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Begin with the number of steps there will be."""
        n_steps = net.max_epochs * len(batch_bounds(len(X), net.batch_size))
        self._bar = progress_bar(n_steps, "training", " steps", quiet=False)

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Count the step."""
        self._bar.update()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Show the losses."""
        losses = {name: net.history[-1][f"{name}_loss"] for name in net.losses.names}
        self._bar.set_postfix({name: f"{loss:.3g}" for name, loss in losses.items()}, refresh=False)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Remove the bar."""
        self._bar.close()
