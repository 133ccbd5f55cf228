# SPDX-License-Identifier: BSD-3-Clause
"""scikit-learn's callbacks (from 1.9 on): what they are told of a fit and of its epochs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sklearn_docids._training.run import Trained

Method = TypeVar("Method", bound=Callable[..., Any])

__all__ = ["CallbackSupportMixin", "FitTasks", "available_if", "with_callbacks"]

if TYPE_CHECKING:
    # scikit-learn has no types: of what it decorates, a type checker would know nothing.
    class CallbackSupportMixin:
        def set_callbacks(self, *callbacks: Any) -> Self: ...

    def with_callbacks(method: Method) -> Method: ...

    def available_if(check: Callable[[Any], bool]) -> Callable[[Method], Method]: ...

else:
    from sklearn.utils.metaestimators import available_if

    try:
        from sklearn.callback import CallbackSupportMixin, with_callbacks
    except ImportError:

        class CallbackSupportMixin:
            """Stand-in for a scikit-learn that has no callbacks."""

        def with_callbacks(method):
            """Return the method as it is."""
            return method


class FitTasks:
    """Tells scikit-learn's callbacks that a fit begins and ends, and of each epoch in it.

    Parameters
    ----------
    estimator, X, y : object
        Handed to the callbacks.
    n_epochs : int
        Epochs that the fit may have.
    fitted : callable
        Makes the attributes of a fitted estimator from a `Trained`; called only for a callback that asks for them.
    """

    def __init__(self, estimator: Any, X: Any, y: Any, n_epochs: int, fitted: Callable[[Trained], dict[str, Any]]):
        self.given = {"estimator": estimator, "X": X, "y": y}
        self.fitted = fitted
        self.context = estimator._init_callback_context(max_subtasks=n_epochs)
        self.epoch: Any = None
        self.last: Callable[[], Trained] | None = None

    def __enter__(self) -> FitTasks:
        self.context.call_on_fit_task_begin(**self.given)
        return self

    def begin(self) -> None:
        """Tell that an epoch begins."""
        self.epoch = self.context.subcontext(task_name="epoch")
        self.epoch.call_on_fit_task_begin(**self.given)

    def end(self, so_far: Callable[[], Trained]) -> bool:
        """Tell that it has ended; return whether a callback has seen enough."""
        self.last = so_far
        return self._end(self.epoch)

    def __exit__(self, *exception: object) -> None:
        self._end(self.context)

    def _end(self, context: Any) -> bool:
        return bool(context.call_on_fit_task_end(**self.given, reconstruction_attributes=self._attributes))

    def _attributes(self) -> dict[str, Any]:
        return {} if self.last is None else self.fitted(self.last())
