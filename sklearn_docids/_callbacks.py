# SPDX-License-Identifier: BSD-3-Clause
"""scikit-learn's callbacks (from 1.9 on) in a training loop that belongs to skorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skorch.callbacks import Callback

__all__ = ["CallbackSupportMixin", "EpochTasks", "with_callbacks"]

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stand-in for a scikit-learn that has no callbacks."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method as it is."""
        return method


class EpochTasks(Callback):
    """Tell scikit-learn's callbacks of each epoch; stop when one of them says so."""

    def __init__(self, estimator: Any, X: Any, y: Any, fitted: Callable[[Any], dict[str, Any]], n_epochs: int):
        self.estimator = estimator
        self.X = X
        self.y = y
        self.fitted = fitted
        self.context = estimator._init_callback_context(max_subtasks=n_epochs)
        self.task: Any = None

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Tell that the fit begins."""
        self.context.call_on_fit_task_begin(estimator=self.estimator, X=self.X, y=self.y)

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Tell that an epoch begins."""
        self.task = self.context.subcontext(task_name="epoch")
        self.task.call_on_fit_task_begin(estimator=self.estimator, X=self.X, y=self.y)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Tell that an epoch has ended; what is fitted so far is made only for a callback that asks for it."""
        net.stopping |= self._end(self.task, net)
        self.task = None

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Tell that the fit has ended, and before that, an epoch that was cut short."""
        if self.task is not None:
            self._end(self.task, net)
        self._end(self.context, net)

    def _end(self, context: Any, net: Any) -> bool:
        return context.call_on_fit_task_end(
            estimator=self.estimator, X=self.X, y=self.y, reconstruction_attributes=lambda: self.fitted(net)
        )
