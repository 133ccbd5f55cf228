# SPDX-License-Identifier: BSD-3-Clause
"""The three losses of DOC-IDS, each a function of what the network puts out.

Notation of the paper: g are the features, h_c the class scores (before any softmax), n the rows of a mini-batch.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

LOSSES = ("descriptiveness", "compactness", "reconstruction")


def descriptiveness_loss(class_scores: Tensor, labels: Tensor) -> Tensor:
    r"""Return the cross-entropy of reference flows: how well the features tell reference classes apart.

    Paper, sections 2.1 and 3.3.1.

    .. math:: l_D = -\frac{1}{n} \sum_i \log \mathrm{softmax}(h_c(x_i))_{y_i}

    Parameters
    ----------
    class_scores : Tensor of float, shape (n, n_classes)
        Class scores h_c of reference flows.
    labels : Tensor of int64, shape (n,)
        Class numbers.

    Returns
    -------
    Tensor of float, shape ()
        The loss, at least 0.

    Examples
    --------
    >>> import torch
    >>> float(descriptiveness_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1])))  # ln 2
    0.693147...
    """
    return cross_entropy(class_scores, labels)


def compactness_loss(class_scores: Tensor) -> Tensor:
    r"""Return the leave-one-out spread of a mini-batch of target flows (paper, section 2.2, equation 1).

    .. math:: l_C = \frac{1}{nk} \sum_i \lVert x_i - m_i \rVert^2
              \quad\text{with}\quad m_i = \frac{1}{n-1} \sum_{j \ne i} x_j

    As :math:`x_i - m_i = \frac{n}{n-1} (x_i - \bar x)`, this is :math:`(n / (n-1))^2` times the mean biased variance
    of the k columns, which is how it is computed.

    Parameters
    ----------
    class_scores : Tensor of float, shape (n, k)
        Class scores h_c of target flows, before any softmax.

    Returns
    -------
    Tensor of float, shape ()
        The loss, at least 0; 0 for equal rows.

    Raises
    ------
    ValueError
        There are fewer than two rows.

    References
    ----------
    .. [1] Perera, P., and V. M. Patel, "Learning Deep Features for One-Class Classification", IEEE Transactions on
       Image Processing 28(11), 2019, section III-C.

    Examples
    --------
    >>> import torch
    >>> float(compactness_loss(torch.tensor([[1.0, 0.0], [3.0, 0.0]])))  # ||x1 - x2||^2 / k
    2.0
    """
    n = len(class_scores)
    if n < 2:
        raise ValueError(f"compactness needs at least 2 rows, got {n}")
    return (n / (n - 1)) ** 2 * class_scores.var(dim=0, unbiased=False).mean()


def reconstruction_loss(reconstruction: Tensor, features: Tensor) -> Tensor:
    r"""Return the mean squared error of the autoencoder's copy of target features (paper, section 3.3.2).

    .. math:: l_R = \frac{1}{256 n} \sum_i \lVert \hat g(x_i) - g(x_i) \rVert^2

    Parameters
    ----------
    reconstruction, features : Tensor of float, shape (n, 256)
        The autoencoder's output, and the features g that it was given.

    Returns
    -------
    Tensor of float, shape ()
        The loss, at least 0.

    Examples
    --------
    >>> import torch
    >>> float(reconstruction_loss(torch.zeros(2, 256), torch.ones(2, 256)))
    1.0
    """
    return mse_loss(reconstruction, features)
