# SPDX-License-Identifier: BSD-3-Clause
"""The fitted network, folded for scoring: the same numbers with a third of the work.

In evaluation, batch normalisation is an affine map of each channel. One that follows a ReLU and precedes a pooling is
moved behind the pooling, where there is half as much to do; one beside a dense layer is folded into its weights. Dense
layers with no activation between them are one matrix: 5312 x 256 instead of 5312 x 1024 and 1024 x 256. A flow of fewer
packets than a row has room for ends in zeros, and what these contribute is a constant: only the first quarters of the
row that are not all zero are computed. All folding is done in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, channels_last, nn
from torch.nn.functional import conv2d, linear

from sklearn_docids._network.table1 import DOCIDSNetwork

# Parts of a row at whose ends the zeros may begin.
N_PARTS = 4
# Matrix kernels choose their order of summation by shape; with one shape, the score of a flow does not depend on the
# flows beside it. So rows come in chunks of these sizes, the last one padded. Larger ones leave the cache in the
# convolutions; in the dense layers, whose weights are read once per chunk, smaller ones read more often.
CONVOLUTION_ROWS = 64
DENSE_ROWS = 192
# What is kept of the second dense layer where an activation stands before it.
SECOND = ("matrix_2", "summand_2", "factor_4", "summand_4")


def affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    """Return factor and summand of a batch normalisation in evaluation, as float64."""
    factor = exact(norm.weight) / (exact(norm.running_var) + norm.eps).sqrt()
    return factor, exact(norm.bias) - exact(norm.running_mean) * factor


def exact(value: Tensor) -> Tensor:
    """Return a tensor as float64, on the CPU, because not every device has that type."""
    return value.cpu().double()


class Pooled:
    """ReLU, batch normalisation and pooling of pairs, in the order ReLU, pooling, affine map.

    Pooling takes the greatest; where the factor is negative, the greatest result comes of the smallest input, so those
    channels are pooled with the opposite sign.
    """

    def __init__(self, norm: nn.BatchNorm1d):
        factor, self.summand = affine_of(norm)
        self.factor = factor.abs()
        self.sign = 2 * (factor >= 0).to(factor.dtype) - 1
        self.any_negative = bool((factor < 0).any())

    def pool(self, x: Tensor) -> Tensor:
        """Return what is left to be multiplied by ``factor`` and added to ``summand``; (n, channels, 1, length)."""
        x = torch.relu_(x)
        if self.any_negative:
            x = x * self.sign.to(x)[:, None, None]
        even = 2 * (x.shape[3] // 2)
        return torch.maximum(x[..., 0:even:2], x[..., 1:even:2])


class FoldedNetwork(nn.Module):
    """g of a `DOCIDSNetwork` in evaluation, as it is now: later changes of the network are not followed."""

    conv_1: Tensor
    bias_1: Tensor
    factor_1: Tensor
    summand_1: Tensor
    conv_2: Tensor
    bias_2: Tensor
    matrix: Tensor

    def __init__(self, network: DOCIDSNetwork):
        super().__init__()
        layers: Any = network.g
        conv_1, _, norm_1, _, conv_2, _, norm_2, _, _, dense_1, active, norm_3, dense_2, _, norm_4 = layers
        self.n_columns = network.settings["n_columns"]
        self.dtype = dense_1.weight.dtype
        with torch.no_grad():
            self.pool_1, self.pool_2 = Pooled(norm_1), Pooled(norm_2)
            self._store("conv_1", exact(conv_1.weight) / network.scale, channels_last)
            self._store("bias_1", conv_1.bias)
            self._store("factor_1", self.pool_1.factor[:, None, None])
            self._store("summand_1", self.pool_1.summand[:, None, None])
            self._store("conv_2", conv_2.weight, channels_last)
            self._store("bias_2", conv_2.bias)
            matrix = exact(dense_1.weight).reshape(dense_1.out_features, -1, conv_2.out_channels)
            summand = exact(dense_1.bias) + (matrix * self.pool_2.summand).sum((1, 2))
            matrix = (matrix * self.pool_2.factor).flatten(1)
            factor_3, summand_3 = affine_of(norm_3)
            second = exact(dense_2.weight) * factor_3
            second_summand = exact(dense_2.bias) + exact(dense_2.weight) @ summand_3
            factor_4, summand_4 = affine_of(norm_4)
            self.has_second = not isinstance(active, nn.Identity)
            if self.has_second:
                for name, value in zip(SECOND, (second, second_summand, factor_4, summand_4), strict=True):
                    self._store(name, value)
            else:
                matrix, summand = second @ matrix, second @ summand + second_summand
                matrix, summand = matrix * factor_4[:, None], summand * factor_4 + summand_4
            self._store("matrix", matrix)
            self._set_parts(matrix, summand)

    def _store(self, name: str, value: Tensor, layout: torch.memory_format = torch.contiguous_format) -> None:
        """Keep a value on the CPU, where it can be pickled and from where it is copied to another device."""
        # Filled anew: with a dimension of length 1, a tensor can pass for both layouts and keep the one it has.
        stored = torch.empty(value.shape, dtype=self.dtype, device="cpu", memory_format=layout)
        self.register_buffer(name, stored.copy_(value))

    def _set_parts(self, matrix: Tensor, summand: Tensor) -> None:
        """Compute, for each length at which the zeros may begin, what they contribute."""
        n_columns = self.n_columns
        self.ends = [-(-n_columns * (part + 1) // N_PARTS) for part in range(N_PARTS)]
        n_channels = self.conv_2.shape[0]
        n_positions = matrix.shape[1] // n_channels
        # Position j of the second pooling sees bytes 4j - 15 to 4j + 3.
        self.positions = [min((end + 15 + 3) // 4, n_positions) for end in self.ends[:-1]] + [n_positions]
        zeros = self._convolve(torch.zeros(1, n_columns, dtype=self.dtype, device="cpu"))[0].double()
        for part, n in enumerate(self.positions):
            beyond = matrix[:, n * n_channels :] @ zeros.flatten()[n * n_channels :]
            self._store(f"summand_of_part_{part}", summand + beyond)

    def _convolve(self, flows: Tensor) -> Tensor:
        """Return (n, positions, channels) behind the second pooling, without its affine map."""
        x = conv2d(flows[:, None, None, :], self.conv_1, self.bias_1, padding=(0, 5))
        x = torch.addcmul(self.summand_1, self.pool_1.pool(x), self.factor_1)
        x = conv2d(x, self.conv_2, self.bias_2, padding=(0, 5))
        return self.pool_2.pool(x)[:, :, 0].transpose(1, 2)

    def parts_of(self, X: np.ndarray) -> np.ndarray:
        """Return, per row, the number of the first length behind which all is zero."""
        return np.sum([X[:, end:].any(axis=1) for end in self.ends[:-1]], axis=0)

    def features(self, flows: Tensor, part: int) -> Tensor:
        """Return g of at most ``DENSE_ROWS`` rows that are zero from ``ends[part]`` on."""
        n_positions = self.positions[part]
        n_columns = min(4 * n_positions, self.n_columns)
        chunks = torch.split(flows[:, :n_columns].to(self.dtype), CONVOLUTION_ROWS)
        x = torch.cat([self._convolve(padded(c, CONVOLUTION_ROWS))[:, :n_positions].flatten(1) for c in chunks])
        return self._dense(padded(x, DENSE_ROWS), part)[: len(flows)]

    def features_of_whole_rows(self, flows: Tensor) -> Tensor:
        """Return g of any number of rows at once, without the shortcut for zeros: the form to export."""
        return self._dense(self._convolve(flows.to(self.dtype)).flatten(1), N_PARTS - 1)

    def _dense(self, x: Tensor, part: int) -> Tensor:
        g = linear(x, self.matrix[:, : x.shape[1]], self.get_buffer(f"summand_of_part_{part}"))
        if not self.has_second:
            return g
        matrix, summand, factor_4, summand_4 = map(self.get_buffer, SECOND)
        return torch.addcmul(summand_4, torch.relu_(linear(torch.relu_(g), matrix, summand)), factor_4)


def padded(rows: Tensor, n_rows: int) -> Tensor:
    """Return rows with zeros below them."""
    if len(rows) == n_rows:
        return rows
    return torch.cat([rows, rows.new_zeros(n_rows - len(rows), rows.shape[1])])
