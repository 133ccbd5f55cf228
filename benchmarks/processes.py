# SPDX-License-Identifier: BSD-3-Clause
"""What two processes would make of training: the same losses, and how much sooner.

    OMP_NUM_THREADS=1 python benchmarks/processes.py [--steps 60]

One process takes steps of 64 pairs; two processes with torch.distributed over gloo take the same batches, half each.
Batch normalisation, compactness and gradients go by the whole batch, so the losses have to be the same: compared in
float64, because in float32 rounding grows from step to step. torch's own SyncBatchNorm does not take tensors of the
CPU; the one here does, for even halves.

Wall-clock times are those of this machine with what else it does. What two idle cores would do is reckoned from CPU
seconds and from the quickest of the messages.
"""

import argparse
import os
import tempfile
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.functional import batch_norm

from sklearn_docids._network.losses import compactness_loss, descriptiveness_loss, reconstruction_loss
from sklearn_docids._network.table1 import BATCH_NORMS, DOCIDSNetwork

N_CLASSES, BATCH, N_ROWS = 20, 64, 4096
WEIGHTS = {"descriptiveness": 1.0, "compactness": 0.1, "reconstruction": 1.0}
# Sums that a step asks of all processes beside the gradients: of four batch normalisations and of compactness, forward
# and backward.
FEW_PER_STEP = 10
WARM_UP = 5


class SumOverProcesses(torch.autograd.Function):
    """The sum of the tensors of all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    backward = forward


def moments(x, dimensions):
    """Return mean and biased variance over the rows of all processes: those of each are as many."""
    mean, square = SumOverProcesses.apply(torch.stack([x.mean(dimensions), x.square().mean(dimensions)]))
    mean, square = mean / dist.get_world_size(), square / dist.get_world_size()
    return mean, square - mean.square()


def synchronize(layer):
    """Make a batch normalisation go by the rows of all processes."""

    def forward(x):
        if not layer.training:
            return batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
        mean, variance = moments(x, [i for i in range(x.dim()) if i != 1])
        shape = [1, -1] + [1] * (x.dim() - 2)
        factor = layer.weight * torch.rsqrt(variance + layer.eps)
        return (x - mean.view(shape)) * factor.view(shape) + layer.bias.view(shape)

    layer.forward = forward


def compactness_of_all(class_scores):
    n = len(class_scores) * dist.get_world_size()
    return (n / (n - 1)) ** 2 * moments(class_scores, [0])[1].mean()


def losses_of(output, labels, compactness):
    return {
        "descriptiveness": descriptiveness_loss(output.reference_class_scores, labels),
        "compactness": compactness(output.target_class_scores),
        "reconstruction": reconstruction_loss(output.reconstruction, output.target_features),
    }


def mean_over_processes(gradients):
    """Reduce all gradients as one message, which is the quickest way; return the bytes of it."""
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
    return flat.nbytes


def train(rank, n_processes, n_steps, batch=BATCH, dtype=torch.float32):
    """Return the losses of each step, and (wall-clock, CPU) seconds of each but the first ones."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = DOCIDSNetwork(320, N_CLASSES, batch_norm="joint").to(dtype).train()
    if n_processes > 1:
        for layer in network.modules():
            if isinstance(layer, BATCH_NORMS):
                synchronize(layer)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=5e-4, fused=True)
    rng = np.random.default_rng(0)
    target, reference = torch.from_numpy(rng.integers(0, 256, (2, N_ROWS, 320), np.uint8))
    labels = torch.from_numpy(rng.integers(0, N_CLASSES, N_ROWS))
    compactness = compactness_of_all if n_processes > 1 else compactness_loss
    losses, seconds, n_own = [], [], batch // n_processes
    for step in range(n_steps):
        first = step * batch % N_ROWS + rank * n_own
        rows = slice(first, first + n_own)
        wall, cpu = time.perf_counter(), time.process_time()
        terms = losses_of(network(target[rows], reference[rows]), labels[rows], compactness)
        optimizer.zero_grad()
        sum(WEIGHTS[name] * term for name, term in terms.items()).backward()
        if n_processes > 1:
            mean_over_processes([parameter.grad for parameter in network.parameters()])
        optimizer.step()
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
        losses.append([float(term.detach()) for term in terms.values()])
    return np.array(losses), np.array(seconds[WARM_UP:])


def messages(n=50):
    """Return bytes of the gradients, and the seconds of reducing them, and of summing a few numbers."""
    gradients, few = [torch.zeros_like(each) for each in DOCIDSNetwork(320, N_CLASSES).parameters()], torch.zeros(128)
    seconds = []
    for _ in range(n):
        dist.barrier()
        times = [time.perf_counter()]
        n_bytes = mean_over_processes(gradients)
        times.append(time.perf_counter())
        dist.all_reduce(few)
        times.append(time.perf_counter())
        seconds.append(np.diff(times))
    return n_bytes, np.array(seconds)


def one_of_two(rank, n_steps, folder):
    store = dist.FileStore(os.path.join(folder, "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    exact, timed = train(rank, 2, n_steps, dtype=torch.float64)[0], train(rank, 2, n_steps)
    torch.save((exact, *timed, messages()), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def two_processes(n_steps):
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(one_of_two, (n_steps, folder), nprocs=2)
        return [torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=False) for rank in range(2)]


def apart(alone, mine, other):
    """Return how far the losses are apart: each process has its own half in two of them, all rows in compactness."""
    far = np.abs((mine + other) / 2 - alone) / alone
    return f"{far[0].max():.1e} in the first step, {far.max():.1e} in any"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    n_steps = parser.parse_args().steps
    print(f"load {os.getloadavg()[0]:.1f}")
    try:
        nn.SyncBatchNorm(3)(torch.zeros(4, 3))
    except ValueError as error:
        print(f"torch.nn.SyncBatchNorm: {error}")

    (mine, mine32, both, (n_bytes, sent)), (other, other32, _, _) = two_processes(n_steps)
    exact = train(0, 1, n_steps, dtype=torch.float64)[0]
    print(f"losses of two processes beside one, float64: {apart(exact, mine, other)}")
    losses, alone = train(0, 1, n_steps)
    print(f"the same, float32: {apart(losses, mine32, other32)}")
    half = np.median(train(0, 1, n_steps, batch=BATCH // 2)[1][:, 1])
    wall, cpu = np.median(alone, axis=0)
    print(f"one process, a step of {BATCH} pairs: {cpu * 1e3:.0f} ms CPU, {wall * 1e3:.0f} ms wall")
    print(f"two processes, half each: {' and '.join(f'{x * 1e3:.0f}' for x in np.median(both, axis=0)[::-1])} ms")
    for name, column in (f"gradients, {n_bytes / 1e6:.1f} MB", 0), ("a few numbers", 1):
        print(f"{name}: {sent[:, column].min() * 1e3:.2f} ms, median {np.median(sent[:, column]) * 1e3:.2f}")
    print(f"one process, a step of {BATCH // 2} pairs: {half * 1e3:.0f} ms CPU")
    gradients, few = sent.min(axis=0)
    behind, hidden = cpu / (half + gradients + FEW_PER_STEP * few), cpu / max(half, gradients)
    print(f"two idle cores: {behind:.2f} x one if work waits for messages, {hidden:.2f} x if it never has to")


if __name__ == "__main__":
    main()
