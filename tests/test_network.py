"""The network is that of the paper's Table 1."""

import pytest
import torch
from torch import nn

from sklearn_docids._network.table1 import DOCIDSNetwork, FlattenPositions, pooled_length


def n_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_lengths_of_table_1():
    network = DOCIDSNetwork(320, 20)
    lengths = [320]
    flows = torch.zeros(2, 1, 1, 320)
    for layer in network.g:
        flows = layer(flows)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | FlattenPositions):
            lengths.append(flows.shape[-1])
    assert lengths == [320, 325, 162, 167, 83, 5312]
    assert flows.shape == (2, 256)


def test_parameter_counts_of_table_1():
    network = DOCIDSNetwork(320, 20)
    assert n_parameters(network.g) + n_parameters(network.h_c) == 5_723_380
    assert n_parameters(network.autoencoder) == 82_496


def test_layers_of_table_1_in_order():
    kinds = [type(layer) for layer in DOCIDSNetwork(320, 20).g if not isinstance(layer, nn.Identity)]
    convolution = [nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.MaxPool2d]
    assert kinds == [*convolution, *convolution, FlattenPositions, nn.Linear, nn.BatchNorm1d, nn.Linear, nn.BatchNorm1d]


@pytest.mark.parametrize("n_columns", [1, 2, 3, 7, 100, 321])
def test_any_number_of_columns(n_columns):
    network = DOCIDSNetwork(n_columns, 3)
    output = network(torch.zeros(2, n_columns), torch.ones(2, n_columns))
    assert output.target_features.shape == output.reconstruction.shape == (2, 256)
    assert output.target_class_scores.shape == output.reference_class_scores.shape == (2, 3)
    assert network.g[9].in_features == 64 * pooled_length(n_columns)


def test_bytes_are_scaled_inside_the_network():
    network = DOCIDSNetwork(8, 2).eval()
    row = torch.tensor([[0, 1, 5, 100, 200, 255, 7, 9]], dtype=torch.uint8)
    assert torch.equal(network.features(row), network.features(row.double()))
    assert torch.equal(network.features(row), network.g((row.float() / 255)[:, None, None, :]))


def running_mean(network):
    return network.g[2].running_mean.clone()


@pytest.mark.parametrize("batch_norm", ["separate", "target", "joint"])
def test_which_inputs_enter_the_running_statistics(batch_norm):
    torch.manual_seed(0)
    target, reference = torch.rand(8, 12) * 255, torch.rand(8, 12) * 20
    network = DOCIDSNetwork(12, 2, batch_norm)
    alone = DOCIDSNetwork(12, 2, batch_norm)
    alone.load_state_dict(network.state_dict())
    network(target, reference)
    alone(target)
    assert torch.equal(running_mean(network), running_mean(alone)) == (batch_norm == "target")


@pytest.mark.parametrize("batch_norm", ["separate", "target", "joint"])
def test_whether_the_reference_normalises_the_target(batch_norm):
    torch.manual_seed(0)
    target, references = torch.rand(8, 12) * 255, (torch.zeros(8, 12), torch.rand(8, 12) * 255)
    network = DOCIDSNetwork(12, 2, batch_norm)
    first, second = (network(target, reference).target_features for reference in references)
    assert torch.equal(first, second) == (batch_norm != "joint")


def test_dense_activation_stands_behind_the_dense_layers_of_g_only():
    plain, relu = DOCIDSNetwork(12, 2), DOCIDSNetwork(12, 2, dense_activation="relu")
    assert (
        sum(isinstance(layer, nn.ReLU) for layer in relu.g) - sum(isinstance(layer, nn.ReLU) for layer in plain.g) == 2
    )
    assert len(relu.autoencoder) == len(plain.autoencoder)


@pytest.mark.parametrize("batch_norm", ["separate", "target"])
def test_both_inputs_at_once_give_what_each_alone_gives(batch_norm):
    """Walking both inputs through the layers together is the literal network, run once per input."""
    torch.manual_seed(0)
    target, reference = torch.rand(9, 40, dtype=torch.float64) * 255, torch.rand(7, 40, dtype=torch.float64) * 255
    network = DOCIDSNetwork(40, 3, batch_norm, dense_activation="relu").double()
    output = network(target, reference)
    assert torch.allclose(output.target_features, network.features(target), rtol=1e-12, atol=1e-12)
    assert torch.allclose(
        output.reference_class_scores, network.h_c(network.features(reference)), rtol=1e-12, atol=1e-12
    )
