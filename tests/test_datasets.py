"""make_traffic: the same bytes for the same seed, true labels, and no attack that a trivial look gives away."""

import hashlib

import numpy as np
import pytest

from sklearn_docids import FlowSampler
from sklearn_docids.datasets import make_traffic
from sklearn_docids.metrics import attack_roc_auc_score


@pytest.fixture(scope="module")
def traffic(tmp_path_factory):
    return make_traffic(tmp_path_factory.mktemp("traffic"), n_flows=150, n_reference=6, n_attacks=10, random_state=0)


def digest(traffic):
    paths = [*traffic.reference, traffic.train, traffic.test, traffic.labels]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    small = {"n_flows": 5, "n_reference": 2, "n_attacks": 1}
    first, again, other = (
        digest(make_traffic(tmp_path / name, **small, random_state=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert not set(first) & set(other)


def test_every_flow_written_is_sampled_and_labelled(traffic):
    sampler = FlowSampler()
    assert len(sampler.flows(traffic.train)) == 150
    kinds, counts = np.unique(traffic.attack_of(sampler.flows(traffic.test)), return_counts=True)
    assert dict(zip(kinds, counts, strict=True)) == {
        "": 150, "beacon": 10, "dns-tunnel": 10, "exfiltration": 10, "injection": 10, "ssh-guessing": 10,
    }  # fmt: skip


def test_the_reference_has_a_capture_per_class_named_after_it(traffic):
    assert len(traffic.reference) >= 8
    assert [path.stem for path in traffic.reference] == traffic.reference_classes
    assert [len(FlowSampler().flows(path)) for path in traffic.reference] == [6] * 12


def test_the_table_of_labels_names_the_attacks(traffic):
    lines = traffic.labels.read_text().splitlines()
    assert lines[0] == "src_ip,src_port,dst_ip,dst_port,protocol,attack"
    assert len(lines) == 51


def best_orientation(y, values):
    auc = attack_roc_auc_score(y, values)
    return max(auc, 1 - auc)


@pytest.mark.parametrize("seed", range(3))
def test_number_of_packets_ttl_and_length_do_not_give_attacks_away(tmp_path, seed):
    traffic = make_traffic(tmp_path, n_flows=200, n_reference=1, n_attacks=20, random_state=seed)
    flows = FlowSampler().flows(traffic.test)
    y = np.where(traffic.attack_of(flows) == "", 1, -1)
    assert best_orientation(y, flows.packets_forward + flows.packets_backward) <= 0.7
    assert best_orientation(y, flows.X[:, 22]) == 0.5
    assert best_orientation(y, flows.dst_port) <= 0.7


def test_checksums_are_valid_and_connections_well_formed(traffic):
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether
    from scapy.utils import PcapReader

    with PcapReader(str(traffic.train)) as reader:
        for packet in reader:
            again = Ether(bytes(packet))
            transport = again[IP].payload
            carried = again[IP].chksum, transport.chksum
            del again[IP].chksum, transport.chksum
            again = Ether(bytes(again))
            assert (again[IP].chksum, again[IP].payload.chksum) == carried
            assert TCP not in packet or packet[TCP].flags.value
    flags = FlowSampler().flows(traffic.train)
    tcp = flags[flags.protocol == 6]
    assert (tcp.tcp_flags_forward & tcp.tcp_flags_backward & 0x03 == 0x03).all()  # SYN and FIN both ways


@pytest.mark.parametrize("name", ["n_flows", "n_reference", "n_attacks"])
def test_numbers_below_one_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        make_traffic(tmp_path, **{name: 0})
