"""What a flow is of: how it began and ended, who opened it, and whether it goes on in the next capture."""

import io
import itertools
import os
import threading
import time

import numpy as np
import pytest
from captures import pcap, tcp, udp
from packets import OUTER, RAW, VXLAN_HEADER, Ether
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from sklearn_docids import CaptureWarning, FlowSampler
from sklearn_docids.capture.table import FlowTable

CLIENT, SERVER = "10.0.0.1", "10.0.0.2"


def out(flags, sport=2000, dport=80):
    return tcp(sport, dport, flags, src=CLIENT, dst=SERVER)


def back(flags, sport=2000, dport=80):
    return tcp(dport, sport, flags, src=SERVER, dst=CLIENT)


def flows_of(packets, times=None, **parameters):
    return FlowSampler(fields="raw", **parameters).flows(io.BytesIO(pcap(packets, times=times)))


WHOLE = [out("S"), back("SA"), out("A"), out("PA"), back("PA"), out("FA"), back("FA"), out("A")]


@pytest.mark.parametrize(
    ("packets", "begin", "end"),
    [
        (WHOLE, "handshake", "closed"),
        (WHOLE[1:], "handshake", "closed"),
        (WHOLE[2:], "running", "closed"),
        (WHOLE[:5], "handshake", "open"),
        (WHOLE[:6], "handshake", "open"),  # the server has not closed its half
        ([out("S"), back("RA")], "handshake", "closed"),
        ([out("A"), out("S"), back("SA")], "handshake", "open"),  # out of order
        ([out("PA")] * 4 + [out("S")], "running", "open"),
        ([udp()], "first", "open"),
    ],
)
def test_a_flow_says_how_it_began_and_ended(packets, begin, end):
    flows = flows_of(packets)
    assert (flows.begin.tolist(), flows.end.tolist()) == ([begin], [end])
    assert flows.midstream.tolist() == [begin == "running"]


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [2, 1, 0], [2, 0, 1], [1, 2, 0]])
def test_the_source_opened_the_connection_whatever_the_capture_has_first(order):
    packets = [out("S"), back("SA"), out("A")]
    flows = flows_of([packets[i] for i in order])
    assert (flows.src_ip.tolist(), flows.dst_port.tolist()) == ([CLIENT], [80])
    assert (flows.packets_forward.tolist(), flows.packets_backward.tolist()) == ([2], [1])
    assert (flows.tcp_flags_forward.tolist(), flows.tcp_flags_backward.tolist()) == ([0x12], [0x12])
    assert flows.begin.tolist() == ["handshake"]


@pytest.mark.parametrize(
    ("sport", "dport", "source"),
    [(2000, 80, CLIENT), (50_000, 8080, CLIENT), (50_000, 60_000, SERVER), (80, 443, SERVER), (2000, 3000, SERVER)],
)
def test_without_a_handshake_the_source_has_the_port_of_the_higher_range(sport, dport, source):
    flows = flows_of([back("PA", sport, dport), out("A", sport, dport)])
    assert flows.src_ip.tolist() == [source]  # the server's packet came first


def test_one_direction_alone_keeps_its_sender():
    assert flows_of([back("SA"), out("S")], bidirectional=False).src_ip.tolist() == [SERVER, CLIENT]


def test_udp_goes_by_its_first_packet():
    assert flows_of([udp(53, 40_000, src=SERVER, dst=CLIENT)]).src_ip.tolist() == [SERVER]


@pytest.mark.parametrize(
    ("silence", "begins", "ends"),
    [
        (120, ["first"], ["open"]),
        (121, ["first", "timeout"], ["idle", "open"]),
        (240, ["first", "timeout"], ["idle", "open"]),
        (241, ["first", "first"], ["idle", "open"]),
    ],
)
def test_what_goes_on_behind_a_timeout_says_so_for_as_long_again(silence, begins, ends):
    flows = flows_of([udp(), udp()], times=[0.0, float(silence)])
    assert (flows.begin.tolist(), flows.end.tolist()) == (begins, ends)


def test_a_connection_cut_by_a_timeout_keeps_its_direction_and_is_midstream():
    flows = flows_of([out("S", 600, 700), back("A", 600, 700), back("A", 600, 700)], times=[0.0, 1.0, 200.0])
    assert flows.src_ip.tolist() == [CLIENT, CLIENT]
    assert (flows.begin.tolist(), flows.midstream.tolist()) == (["handshake", "timeout"], [False, True])


def test_a_new_handshake_behind_a_timeout_is_no_tail():
    assert flows_of([out("S"), out("S")], times=[0.0, 200.0]).begin.tolist() == ["handshake", "handshake"]


def test_active_timeout_cuts_a_session_that_never_ends():
    times = [60.0 * i for i in range(600)]
    flows = flows_of([udp(dport=2404)] * 600, times=times, active_timeout=1800.0)
    assert (flows.packets_forward.tolist(), set(flows.end[:-1])) == ([31] * 19 + [11], {"active"})
    assert flows.begin.tolist() == ["first"] + ["timeout"] * 19


def test_the_evicted_and_the_idle_are_told_apart():
    flows = flows_of([udp(1), udp(2), udp(3)], times=[0.0, 200.0, 201.0], max_live_flows=1)
    assert flows.end.tolist() == ["idle", "evicted", "open"]


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_rotated_captures_have_the_rows_of_the_joined_one(n_jobs, tmp_path):
    packets = [
        p for i in range(20) for p in (out("S", 2000 + i), back("SA", 2000 + i), out("PA", 2000 + i), udp(i + 1))
    ]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(packets))
    packets, times = [packets[i] for i in order], np.sort(rng.random(len(packets)) * 300)
    whole = flows_of(packets, times=times)
    bounds = [0, 11, 12, 50, 50, len(packets)]
    paths = []
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        paths.append(tmp_path / f"{number}.pcap")
        paths[-1].write_bytes(pcap(packets[first:last], times=times[first:last]))
    sampler = FlowSampler(fields="raw", n_jobs=n_jobs)
    parts = sampler.flows(paths)
    assert (parts.X == whole.X).all()
    assert (parts.rows.records == whole.rows.records).all()
    assert [counts["packets"] for counts in parts.counters] == np.diff(bounds).tolist()
    began = np.searchsorted(np.array([round(times[b] * 1e6) for b in (11, 12, 50)]), parts.time_first // 1000, "right")
    assert parts.capture.tolist() == np.array([0, 1, 2, 4])[began].tolist()
    sampler.write(paths, tmp_path / "folder")
    assert (FlowTable.load(tmp_path / "folder").rows.records == whole.rows.records).all()
    streamed = list(sampler.iter_flows(paths, early=False))
    order = np.argsort(np.concatenate([table.rows.records["row"] for table in streamed]))
    assert (np.concatenate([table.X for table in streamed])[order] == whole.X).all()
    assert np.concatenate([table.capture for table in streamed])[order].tolist() == parts.capture.tolist()


@pytest.mark.parametrize(
    ("step", "parameters", "n_flows"),
    [
        (1.0, {}, 1),
        (119.0, {}, 1),
        (121.0, {}, 2),
        (-1.0, {}, 2),  # captured at the same time elsewhere
        (1.0, {"rotated": False}, 2),
        (1e6, {"idle_timeout": None}, 1),
    ],
)
def test_a_capture_goes_on_with_flows_only_where_it_continues_the_one_before(step, parameters, n_flows, tmp_path):
    for name, time_ in (("a", 1000.0), ("b", 1000.0 + step)):
        (tmp_path / name).write_bytes(pcap([udp()], times=[time_]))
    flows = FlowSampler(**parameters).flows([tmp_path / "a", tmp_path / "b"])
    assert (len(flows), flows.capture.tolist()) == (n_flows, [0, 1][:n_flows])
    assert [counts["flows"] for counts in flows.counters] == [1, n_flows - 1]


def test_flows_do_not_go_on_in_a_capture_of_another_label(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for number, path in enumerate(paths):
        path.write_bytes(pcap([udp()], times=[1000.0 + number]))
    for n_jobs in (None, 2):
        X, y, groups = FlowSampler(n_jobs=n_jobs).sample(paths, ["dns", "dns", "mail"])
        assert (len(X), y.tolist(), groups.tolist()) == (2, ["dns", "mail"], [0, 2])
    assert len(FlowSampler().sample(paths)[0]) == 1


def test_what_was_ignored_is_stored_with_a_table(tmp_path):
    (tmp_path / "c").write_bytes(pcap([udp(), bytes(Ether(type=0x0806)) + bytes(28)]))
    flows = FlowSampler().flows(tmp_path / "c")
    flows.save(tmp_path / "t.npz")
    FlowSampler().write(tmp_path / "c", tmp_path / "folder")
    for path in (tmp_path / "t.npz", tmp_path / "folder"):
        assert FlowTable.load(path).ignored == flows.ignored == [{"ARP": 1}]


def test_tails_can_be_left_out(tmp_path):
    (tmp_path / "a").write_bytes(pcap([out("A", 1), out("S", 2), out("PA", 3), udp()]))
    (tmp_path / "b").write_bytes(pcap([out("S", 4), out("A", 5)], times=[1e6, 1e6]))
    paths = [tmp_path / "a", tmp_path / "b"]
    sampler = FlowSampler(fields="raw", midstream="drop")
    flows = sampler.flows(paths)
    assert (flows.src_port.tolist(), flows.capture.tolist()) == ([2, 1000, 4], [0, 0, 1])
    assert [(c["flows"], c["flows_dropped"]) for c in flows.counters] == [(2, 2), (1, 1)]
    assert sampler.write(paths, tmp_path / "folder") == flows.counters
    written = FlowTable.load(tmp_path / "folder")
    assert (written.X == flows.X).all()
    assert (written.rows.records == flows.rows.records).all()
    assert written.capture.tolist() == flows.capture.tolist()
    assert sorted(p for table in sampler.iter_flows(paths) for p in table.src_port.tolist()) == [2, 4, 1000]
    assert len(sampler.transform(paths)) == 3


def test_a_quiet_live_stream_ends_its_idle_flows_by_the_clock(tmp_path):
    fifo, done = tmp_path / "fifo", threading.Event()
    os.mkfifo(fifo)

    def feed():
        with open(fifo, "wb", buffering=0) as file:
            file.write(pcap([udp()], times=[time.time()]))
            done.wait(30)

    threading.Thread(target=feed, daemon=True).start()
    stream = FlowSampler(idle_timeout=0.4).iter_flows(fifo)
    assert len(next(stream)) == 1  # while the writer is still silent
    assert not done.is_set()
    done.set()
    assert list(stream) == []


def test_an_old_capture_played_back_slowly_is_not_live(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    data = pcap([udp(), udp()], times=[1000.0, 1000.1])

    def feed():
        with open(fifo, "wb", buffering=0) as file:
            file.write(data[:-60])
            time.sleep(0.6)
            file.write(data[-60:])

    threading.Thread(target=feed, daemon=True).start()
    tables = list(FlowSampler(idle_timeout=0.2).iter_flows(fifo))
    assert [table.packets_forward.tolist() for table in tables] == [[2]]


def test_decoys_in_a_tunnel_of_others_do_not_reach_a_flow():
    def wrapped(packet, src):
        return (
            Ether()
            / IP(src=src, dst="192.0.2.9")
            / UDP(sport=999, dport=4789)
            / (bytes.fromhex("0800000000000100") + bytes(packet))
        )

    real = IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=53)
    decoy, own = Ether() / real / b"decoy", Ether() / real / b"own"
    packets = [wrapped(decoy, "192.0.2.66")] * 3 + [wrapped(own, "192.0.2.1")]
    flows = flows_of(packets, tunnels="innermost")
    assert flows.packets_forward.tolist() == [3, 1]
    assert b"own" in flows.X[1].tobytes()
    assert b"decoy" not in flows.X[1].tobytes()
    assert flows_of(packets, tunnels="innermost", tunnel_endpoints=False).packets_forward.tolist() == [4]
    assert flows_of([*packets, own], tunnels="innermost").packets_forward.tolist() == [3, 1, 1]


def test_both_directions_of_a_tunnel_are_one_flow():
    there = Ether() / IP(src="192.0.2.1", dst="192.0.2.2") / IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=53)
    and_back = Ether() / IP(src="192.0.2.2", dst="192.0.2.1") / IP(src=SERVER, dst=CLIENT) / UDP(sport=53, dport=5)
    flows = flows_of([there, and_back], tunnels="innermost")
    assert (flows.packets_forward.tolist(), flows.packets_backward.tolist()) == ([1], [1])


def test_vxlan_ports_can_be_others():
    packet = OUTER / UDP(sport=999, dport=8472) / (bytes(VXLAN_HEADER)[8:] + bytes(Ether() / RAW))
    assert flows_of([packet], tunnels="innermost").dst_port.tolist() == [8472]
    assert flows_of([packet], tunnels="innermost", vxlan_ports=(4789, 8472)).dst_port.tolist() == [53]


@pytest.mark.parametrize("ports", [(0,), (70_000,), ("4789",), (1.5,)])
def test_vxlan_ports_that_are_none_are_refused(ports):
    with pytest.raises(ValueError, match="vxlan_ports"):
        FlowSampler(vxlan_ports=ports).fit([])


def one_hop_further(packet):
    packet = packet.copy()
    packet.src, packet[IP].ttl = "02:00:00:00:00:09", packet[IP].ttl - 1
    del packet[IP].chksum
    return packet


@pytest.mark.parametrize(
    ("seconds", "ignore_ttl", "n_duplicates"),
    [(None, False, 2), (None, True, 3), (0.5, False, 1), (0.5, True, 2), (0.0, True, 0)],
)
def test_duplicates_by_window_time_and_ttl(seconds, ignore_ttl, n_duplicates):
    packet = Ether() / IP(src=CLIENT, dst=SERVER, id=7) / TCP(sport=5, dport=80, flags="S") / b"x"
    other_link = packet.copy()
    other_link.src = "02:00:00:00:00:08"
    packets, times = [packet, other_link, one_hop_further(packet), packet], [0.0, 0.1, 0.2, 1.0]
    parameters = {"duplicate_window": 5, "duplicate_seconds": seconds, "duplicate_ignore_ttl": ignore_ttl}
    assert flows_of(packets, times=times, **parameters).counters[0]["duplicate"] == n_duplicates


def test_a_hop_limit_is_a_ttl():
    ends = {"src": "fd00::1", "dst": "fd00::2"}
    packets = [Ether() / IPv6(hlim=limit, **ends) / UDP(sport=5, dport=53) for limit in (64, 63)]
    assert flows_of(packets, duplicate_window=1, duplicate_ignore_ttl=True).counters[0]["duplicate"] == 1
    assert flows_of(packets, duplicate_window=1).counters[0]["duplicate"] == 0


def test_what_is_ignored_is_counted_by_its_name():
    gre = OUTER.copy() / b""
    gre[IP].proto = 47
    esp = OUTER.copy() / b""
    esp[IP].proto = 50
    packets = [bytes(gre)] * 3 + [bytes(esp)] * 2 + [bytes(Ether(type=0x0806)) + bytes(28)]
    packets += [bytes(Ether(type=0x1234)) + bytes(40), bytes(udp())]
    flows = flows_of(packets)
    assert flows.ignored == [{"GRE": 3, "ESP": 2, "ARP": 1, "EtherType 0x1234": 1}]
    with pytest.warns(
        CaptureWarning, match=r"100 ignored \(100 non ip\).*of the ignored: 84 other kinds, 1 EtherType 0x"
    ):
        many = flows_of([bytes(Ether(type=0x6000 + i)) + bytes(20) for i in range(100)])
    assert (len(many.ignored[0]), many.ignored[0]["other kinds"]) == (17, 84)
