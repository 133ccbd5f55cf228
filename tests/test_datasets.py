"""make_traffic: the same bytes for the same seed, true labels, and no attack that a trivial look gives away.

load_class_folder: classes by file and folder names, whole or drawn.
"""

import hashlib
import os
import socket

import numpy as np
import pytest
from captures import pcap, udp

from sklearn_docids import FlowSampler
from sklearn_docids.datasets import load_class_folder, make_traffic
from sklearn_docids.datasets._folder import class_captures
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


def test_classes_are_files_or_folders(tmp_path):
    (tmp_path / "tls").mkdir()
    for name in ("dns.pcap", "ntp.pcap.gz", "tls/a.pcap", "tls/b.pcap", ".hidden"):
        (tmp_path / name).touch()
    paths, labels = class_captures(tmp_path)
    assert labels == ["dns", "ntp", "tls", "tls"]
    assert [path.name for path in paths] == ["dns.pcap", "ntp.pcap.gz", "a.pcap", "b.pcap"]


def test_links_out_of_a_class_folder_and_what_is_no_file_are_skipped_by_name(classes, tmp_path_factory):
    private = tmp_path_factory.mktemp("private")
    (private / "mine.pcap").write_bytes(pcap([udp()]))
    (classes / "same.pcap").symlink_to("ntp.pcap")  # within the folder
    for name, target in {"out": private, "file.pcap": private / "mine.pcap", "dns/up": "..", "loop": "loop"}.items():
        (classes / name).symlink_to(target)
    for name in ("pipe.pcap", "dns/pipe.pcap"):
        os.mkfifo(classes / name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(classes / "socket.pcap"))
    with pytest.warns(
        UserWarning, match="links that lead out of the folder or to folders, pipes, sockets and"
    ) as caught:
        paths, labels = class_captures(classes)
    names = [path.relative_to(classes).as_posix() for path in paths]
    assert dict(zip(names, labels, strict=True)) == {
        "dns/a.pcap": "dns", "dns/b.pcap": "dns", "ntp.pcap": "ntp", "same.pcap": "same",
    }  # fmt: skip
    skipped = ["dns/pipe.pcap", "dns/up", "file.pcap", "loop", "out", "pipe.pcap", "socket.pcap"]
    (warning,) = caught
    assert str(warning.message).startswith(f"{classes}: skipped {', '.join(str(classes / n) for n in skipped)}: ")


def test_a_link_to_a_class_folder_is_followed(classes, tmp_path_factory):
    link = tmp_path_factory.mktemp("links") / "classes"
    link.symlink_to(classes)
    assert class_captures(link)[1] == ["dns", "dns", "ntp"]


def test_names_that_begin_with_a_dot_are_skipped_at_any_depth(classes):
    for name in (".git/objects/x.pcap", "dns/.cache/y.pcap", "dns/._a.pcap"):
        (classes / name).parent.mkdir(parents=True, exist_ok=True)
        (classes / name).touch()
    assert class_captures(classes)[1] == ["dns", "dns", "ntp"]


@pytest.fixture
def classes(tmp_path):
    (tmp_path / "dns").mkdir()
    for name, n_flows in {"dns/a.pcap": 6, "dns/b.pcap": 2, "ntp.pcap": 5}.items():
        (tmp_path / name).write_bytes(pcap([udp(sport=1000 + i, payload=name.encode()) for i in range(n_flows)]))
    return tmp_path


def test_a_class_folder_is_loaded_with_labels_and_captures(classes):
    data = load_class_folder(classes, sampler=FlowSampler(fields="raw"))
    assert data.y.tolist() == ["dns"] * 8 + ["ntp"] * 5
    assert data.groups.tolist() == [0] * 6 + [1] * 2 + [2] * 5
    assert (FlowSampler(fields="raw").transform(data.captures) == data.X).all()
    assert data.target_names.tolist() == ["dns", "ntp"]
    assert "dns: 8 flows\nntp: 5 flows" in data.DESCR
    X, y = load_class_folder(classes, sampler=FlowSampler(fields="raw"), return_X_y=True)
    assert (X == data.X).all()
    assert (y == data.y).all()


def test_addresses_are_random_by_the_seed(classes):
    first, again, other = (
        load_class_folder(classes, sampler=FlowSampler(fields="paper", random_state=seed)).X for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_at_most_so_many_flows_of_a_class_are_drawn_by_the_seed(classes):
    whole = load_class_folder(classes, sampler=FlowSampler(fields="raw"))
    drawn, again, other = (
        load_class_folder(classes, sampler=FlowSampler(fields="raw"), n_per_class=5, random_state=seed)
        for seed in (0, 0, 1)
    )
    assert drawn.y.tolist() == ["dns"] * 5 + ["ntp"] * 5
    assert (drawn.X == again.X).all()
    assert drawn.X.tobytes() != other.X.tobytes()
    assert {row.tobytes() for row in drawn.X} <= {row.tobytes() for row in whole.X}
    assert [whole.y[whole.groups == group][0] for group in drawn.groups] == drawn.y.tolist()


def test_unusable_folders_are_named(classes, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_class_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no captures"):
        load_class_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match="n_per_class must be at least 1 or None, got 0"):
        load_class_folder(classes, n_per_class=0)
    with pytest.warns(UserWarning, match="empty holds no captures"):
        load_class_folder(classes)
    (tmp_path / "empty").rmdir()
    (classes / "void.pcap").write_bytes(pcap([]))
    with pytest.warns(UserWarning, match="class 'void' of .* has no flows"):
        load_class_folder(classes)
