"""The slow, obvious twin of network, losses and training: Table 1 as a tutorial would write it.

Conv1d, each input through the network on its own, batches by indexing, nothing folded or shared.
"""

import itertools

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss


def plain_network(n_columns=320, n_classes=20, activation=None):
    """Return g, h_c and the autoencoder."""

    def convolution(n_in, n_out):
        return [nn.Conv1d(n_in, n_out, 6, padding=5), nn.ReLU(), nn.BatchNorm1d(n_out), nn.MaxPool1d(2)]

    def dense(n_in, n_out):
        return [nn.Linear(n_in, n_out), *([nn.ReLU()] if activation else []), nn.BatchNorm1d(n_out)]

    convolutions = nn.Sequential(*convolution(1, 32), *convolution(32, 64), nn.Flatten())
    with torch.no_grad():
        n_flat = convolutions.eval()(torch.zeros(1, 1, n_columns)).shape[1]
    g = nn.Sequential(*convolutions, *dense(n_flat, 1024), *dense(1024, 256)).train()
    sizes = (256, 128, 64, 128, 256)
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.ModuleDict({"g": g, "h_c": nn.Linear(256, n_classes), "autoencoder": nn.Sequential(*layers[:-1])})


def scaled(rows, network):
    """Return flow bytes as the network takes them."""
    return rows.to(network["h_c"].weight.dtype)[:, None] / 255


def plain_losses(network, target, reference, labels):
    """Return the three losses of a pair of mini-batches."""
    reference_features = network["g"](scaled(reference, network))
    features = network["g"](scaled(target, network))
    h = network["h_c"](features)
    return (
        cross_entropy(network["h_c"](reference_features), labels),
        (len(h) / (len(h) - 1)) ** 2 * h.var(dim=0, unbiased=False).mean(),
        mse_loss(network["autoencoder"](features), features),
    )


def plain_step(network, optimizer, target, reference, labels):
    """Train on a pair of mini-batches; return the losses."""
    optimizer.zero_grad()
    terms = plain_losses(network, target, reference, labels)
    (terms[0] + 0.1 * terms[1] + 10 * terms[2]).backward()
    optimizer.step()
    return terms


def plain_scores(network, rows, batch_size=128):
    """Return the reconstruction error of each row."""
    results = []
    with torch.no_grad():
        for first in range(0, len(rows), batch_size):
            features = network["g"](scaled(torch.from_numpy(rows[first : first + batch_size]), network))
            results.append((network["autoencoder"](features) - features).square().mean(1))
    return torch.cat(results)


def weights_as_plain(network):
    """Return weights and running statistics of a `DOCIDSNetwork`, named and laid out as those of `plain_network`."""
    state = {}
    places = [place for place, layer in enumerate(network.g) if not isinstance(layer, nn.Identity)]
    for name, value in network.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "g":
            place, _, kind = rest.partition(".")
            name = f"g.{places.index(int(place))}.{kind}"
            if value.ndim == 4:  # a convolution of height 1
                value = value[:, :, 0]
            if isinstance(network.g[int(place)], nn.Linear) and kind == "weight" and value.shape[0] == 1024:
                # Flattened by position there, by channel here.
                value = value.unflatten(1, (-1, 64)).transpose(1, 2).flatten(1)
        state[name] = value.clone().contiguous()
    return state
