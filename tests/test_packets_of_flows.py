"""The packets of flows, copied from captures and from the last of a live source."""

import io
import os
import shutil
import struct
import subprocess
import warnings

import numpy as np
import pytest
from captures import block, enhanced, interface, old_packet, option, pcap, section, simple, tcp, udp, udp6
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.utils import RawPcapNgReader

from sklearn_docids import CaptureWarning, FlowSampler
from sklearn_docids._alarms.packets import PacketRing, write_packets
from sklearn_docids._alarms.pcapng import MAX_CAPTURED, PcapngWriter
from sklearn_docids.capture.containers import Capture, opened
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.datasets import make_traffic

RAW = FlowSampler(fields="raw")
NS = 10**9


def packets_in(path):
    """Return (link type, time in ns, original length, bytes) of each packet of a pcapng, as scapy reads it."""
    found = []
    with RawPcapNgReader(str(path)) as reader:
        while True:
            try:
                data, meta = reader._read_packet(2**24)  # the public ways cut packets at 64 KiB
            except EOFError:
                return found
            time = (meta.tshigh << 32 | meta.tslow) * NS // meta.tsresol
            found.append((meta.linktype, time, meta.wirelen, data))


def blocks_of(path):
    with opened(path) as stream:
        for data, records in Capture(stream, str(path)).blocks():
            yield data.copy(), records.copy()


def all_packets(path):
    """Return (link type, time, original length, bytes) of each packet of any capture, as the sampler reads it."""
    return [
        (link_type, time, original, data[start : start + captured].tobytes())
        for data, records in blocks_of(path)
        for start, captured, time, link_type, original in records.tolist()
    ]  # fmt: skip


def five_tuple_of(packet):
    """Return both ends and the protocol of an Ethernet frame, as scapy reads it; None of others."""
    frame = Ether(packet[3])
    ip = frame.getlayer(IP) or frame.getlayer(IPv6)
    transport = frame.getlayer(TCP) or frame.getlayer(UDP)
    if ip is None or transport is None:
        return None
    return {(ip.src, transport.sport), (ip.dst, transport.dport)}, 6 if isinstance(transport, TCP) else 17


def naive_packets(parsed, flows):
    """Return the packets of flows, of pairs of them and their five-tuples: an obvious twin."""
    ends = zip(flows.src_ip, flows.src_port, flows.dst_ip, flows.dst_port, flows.protocol, strict=True)
    sought = [({(a, b), (c, d)}, p) for a, b, c, d, p in ends]
    times = list(zip(flows.time_first, flows.time_last, strict=True))
    return [
        packet
        for packet, key in parsed
        if any(key == wanted and t[0] <= packet[1] <= t[1] for wanted, t in zip(sought, times, strict=True))
    ]


def parsed(path):
    return [(packet, five_tuple_of(packet)) for packet in all_packets(path)]


def signatures(flows):
    """Return what tells a flow, in no order: five-tuple, times, counts, bytes."""
    names = (
        "src_ip", "src_port", "dst_ip", "dst_port", "protocol", "time_first", "time_last", "packets_forward",
        "packets_backward", "bytes_forward", "bytes_backward", "tcp_flags_forward", "link_type", "truncated",
    )  # fmt: skip
    return sorted(zip(*(flows[name].tolist() for name in names), map(bytes, flows.X), strict=True))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "alarms.pcapng"


@pytest.fixture(scope="module")
def traffic(tmp_path_factory):
    return make_traffic(tmp_path_factory.mktemp("traffic"), n_flows=60, random_state=0)


@pytest.fixture(scope="module")
def parsed_traffic(traffic):
    return parsed(traffic.train)


@pytest.mark.parametrize("step", [1, 7, 59])
def test_the_packets_are_those_that_an_obvious_twin_finds(traffic, parsed_traffic, out, step):
    flows = RAW.flows(traffic.train)[::step]
    n_packets = write_packets([traffic.train], flows, out)
    found = packets_in(out)
    assert found == naive_packets(parsed_traffic, flows)
    assert len(found) == n_packets == (flows.packets_forward + flows.packets_backward).sum()


def test_the_sampler_finds_the_same_flows_in_them(traffic, out):
    flows = RAW.flows(traffic.train)[3::5]
    write_packets([traffic.train], flows, out)
    assert signatures(RAW.flows(out)) == signatures(flows)


def test_random_packets_of_few_flows(write, out):
    rng = np.random.default_rng(0)
    packets, times = [], []
    for i in range(200):
        kind = (udp, udp6, tcp)[rng.integers(3)]
        ports = rng.permutation([1000, 1001])[:2].tolist()
        packets.append(kind(*ports, payload=bytes(rng.integers(0, 60))) if kind is not tcp else tcp(*ports, "A"))
        times.append(10 * i + float(rng.uniform(0, 5)) + 500 * (i // 50))
    path = write(pcap(packets, times=times))
    flows = RAW.flows(path)
    of_path = parsed(path)
    for row in range(len(flows)):
        write_packets([path], flows[row], out)
        assert packets_in(out) == naive_packets(of_path, flows[row])
        assert signatures(RAW.flows(out)) == signatures(flows[row])


def test_of_a_five_tuple_used_again_only_the_flow_that_is_meant_is_copied(write, out):
    once = [tcp(flags="S"), tcp(80, 1000, "SA", src="10.0.0.2", dst="10.0.0.1"), tcp(flags="R")]
    path = write(pcap(once * 3))
    flows = RAW.flows(path)
    assert len(flows) == 3
    write_packets([path], flows[1], out)
    assert [time // NS for _, time, _, _ in packets_in(out)] == [3, 4, 5]
    write_packets([path], flows[[2, 0]], out)
    assert [time // NS for _, time, _, _ in packets_in(out)] == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize("early", [999.5, 1.0])  # the latter is further back than the timeout: a wrong stamp
def test_a_packet_stamped_before_the_first_of_its_flow_is_copied_too(write, out, early):
    times = [1000, early, 1000.5]
    path = write(pcap([udp(payload=b"1"), udp(payload=b"2"), udp(payload=b"3")], times=times))
    flows = RAW.flows(path)
    assert len(flows) == 1
    write_packets([path], flows, out)
    assert [time for _, time, _, _ in packets_in(out)] == [round(time * NS) for time in times]


def test_directions_are_flows_of_their_own_where_the_sampler_has_it_so(write, out):
    path = write(pcap([udp(), udp(53, 1000, src="10.0.0.2", dst="10.0.0.1"), udp(payload=b"x")]))
    sampler = FlowSampler(bidirectional=False)
    flows = sampler.flows(path)
    assert write_packets([path], flows[flows.src_port == 1000], out, sampler=sampler) == 2
    assert write_packets([path], flows[flows.src_port == 1000], out) == 3


# --------------------------------------------------------------------------------------------------------------------
# What a packet is kept with


@pytest.mark.parametrize(
    "data",
    [
        pcap([bytes(60), bytes(50)], captured=[60, 20]),
        pcap([bytes(60), bytes(50)], captured=[60, 20], order=">", magic=0xA1B23C4D),
        section() + interface() + block(6, struct.pack("<IIIII", 0, 0, 0, 60, 60) + bytes(60))
        + block(6, struct.pack("<IIIII", 0, 0, 0, 20, 50) + bytes(20)),
        section() + interface() + old_packet(bytes(60))
        + block(2, struct.pack("<HHIIII", 0, 0, 0, 0, 20, 50) + bytes(20)),
        section() + interface(snap_length=20) + block(3, struct.pack("<I", 50) + bytes(20)) + simple(bytes(10)),
    ],
)  # fmt: skip
def test_original_lengths_are_read_from_all_containers(write, data):
    captured, original = zip(*((len(p[3]), p[2]) for p in all_packets(write(data))), strict=True)
    assert (captured, original) in [((60, 20), (60, 50)), ((20, 10), (50, 10))]


def test_old_files_with_lengths_the_other_way_round_have_the_right_ones(write):
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 2, 0, 0, 100, 1) + struct.pack("<IIII", 1, 0, 50, 20) + bytes(20)
    assert [(len(p[3]), p[2]) for p in all_packets(write(data))] == [(20, 50)]


def test_times_link_types_and_lengths_stay_as_they_were(write, out):
    raw = bytes(udp(payload=bytes(100), link=False))
    data = (
        section() + interface(1, options=option(9, b"\x09")) + interface(101, options=option(9, b"\x09"))
        + enhanced(udp(), 1_700_000_000_123_456_789) + enhanced(raw, 1_700_000_001_000_000_001, 1)
        + block(6, struct.pack("<IIIII", 1, *divmod(1_700_000_002_000_000_002, 2**32), 60, 5000) + raw[:60])
        + block(6, struct.pack("<IIIII", 1, *divmod(1_700_000_003_000_000_003, 2**32), 60, 3) + raw[:60])
    )  # fmt: skip
    path = write(data)
    assert write_packets([path], RAW.flows(path), out) == 4
    assert packets_in(out) == [
        (1, 1_700_000_000_123_456_789, len(udp()), bytes(udp())),
        (101, 1_700_000_001_000_000_001, len(raw), raw),
        (101, 1_700_000_002_000_000_002, 5000, raw[:60]),
        (101, 1_700_000_003_000_000_003, 60, raw[:60]),  # no reader takes less than there is
    ]


@pytest.mark.parametrize("n", range(4))
def test_blocks_end_at_four_bytes(write, out, n):
    path = write(pcap([udp(payload=b"abcd"[:n]), udp(payload=b"x")]))
    write_packets([path], RAW.flows(path), out)
    assert out.stat().st_size % 4 == 0
    assert [data for *_, data in packets_in(out)] == [bytes(udp(payload=b"abcd"[:n])), bytes(udp(payload=b"x"))]


def test_a_packet_longer_than_readers_take_is_cut(write, out):
    long = bytes(udp(payload=b"x")) + bytes(400_000)
    path = write(pcap([long, udp(payload=b"y")]))
    write_packets([path], RAW.flows(path), out)
    (_, _, length, data), (*_, after) = packets_in(out)
    assert (length, data) == (len(long), long[:MAX_CAPTURED])
    assert after == bytes(udp(payload=b"y"))


@pytest.mark.skipif(not shutil.which("tcpdump"), reason="tcpdump is not there")
def test_tcpdump_reads_the_file(traffic, out):
    flows = RAW.flows(traffic.train)[::3]
    n_packets = write_packets([traffic.train], flows, out)
    read = subprocess.run(["tcpdump", "-nr", str(out)], capture_output=True, text=True, check=True)
    assert len(read.stdout.splitlines()) == n_packets


def test_vlan_tags_and_tunnels_are_read_as_the_sampler_does(write, out):
    inner = Ether() / IP(src="192.168.0.1", dst="192.168.0.2") / UDP(sport=7, dport=53) / b"inside"
    outer = Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=9999, dport=4789) / VXLAN(vni=1, flags="Instance")
    tagged = Ether() / Dot1Q(vlan=5) / IP(src="10.0.0.3", dst="10.0.0.4") / UDP(sport=8, dport=53) / b"tagged"
    path = write(pcap([outer / inner, tagged, udp()]))
    sampler = FlowSampler(tunnels="innermost")
    flows = sampler.flows(path)
    write_packets([path], flows[flows.src_port == 7], out, sampler=sampler)
    assert [data for *_, data in packets_in(out)] == [bytes(outer / inner)]
    assert signatures(sampler.flows(out)) == signatures(flows[flows.src_port == 7])
    write_packets([path], flows[flows.src_port == 8], out, sampler=sampler)
    assert [data for *_, data in packets_in(out)] == [bytes(tagged)]
    outermost = RAW.flows(path)
    assert write_packets([path], outermost[outermost.src_port == 9999], out) == 1


# --------------------------------------------------------------------------------------------------------------------
# Several captures, and bad ones


def test_a_flow_goes_on_in_the_next_file_of_a_rotation(write, out):
    paths = [
        write(pcap([udp(payload=b"1"), udp(5, payload=b"other")], times=[0, 1]), "a.pcap"),
        write(pcap([udp(payload=b"2")], times=[2]), "b.pcap"),
        write(pcap([udp(payload=b"3"), udp(6)], times=[3, 4]), "c.pcap"),
    ]
    flows = RAW.flows(paths)
    assert len(flows) == 3
    write_packets(paths, flows[0], out)
    assert [time // NS for _, time, _, _ in packets_in(out)] == [0, 2, 3]
    assert write_packets(paths, flows[1], out) == 1


def test_packets_of_another_capture_of_the_same_time_are_not_taken(write, out):
    paths = [write(pcap([udp(payload=bytes([i])), udp()]), f"{i}.pcap") for i in range(3)]
    flows = RAW.flows(paths)
    assert flows.capture.tolist() == [0, 1, 2]
    assert write_packets(paths, flows[1], out) == 2
    assert packets_in(out) == all_packets(paths[1])


def test_flows_are_known_by_the_names_of_their_captures(write, out):
    paths = [write(pcap([udp(payload=bytes([i]))]), f"{i}.pcap") for i in range(3)]
    joined = FlowTable.concatenate([RAW.flows(path) for path in reversed(paths)])
    write_packets(paths, joined[0], out)
    assert packets_in(out) == all_packets(paths[2])


def test_of_a_damaged_capture_what_stands_before_is_copied(write, out):
    path = write(pcap([udp(), udp(payload=b"x"), udp(payload=b"lost")])[:-3])
    with pytest.warns(CaptureWarning, match="cut after"):
        flows = RAW.flows(path)
    assert write_packets([path], flows, out) == 2
    assert len(packets_in(out)) == 2


def test_empty_packets_and_what_is_no_ip_is_passed_over(write, out):
    path = write(pcap([b"", udp(), b"", Ether() / b"arp", bytes(3), udp(payload=b"x")]))
    assert write_packets([path], RAW.flows(path), out) == 2


def test_no_flows_give_a_file_without_packets(write, out):
    path = write(pcap([udp()]))
    assert write_packets([path], RAW.flows(path)[:0], out) == 0
    assert len(RAW.flows(out)) == 0


def test_a_capture_that_has_changed_is_told_of(write, out):
    path = write(pcap([udp(), udp(payload=b"x")]))
    flows = RAW.flows(path)
    write(pcap([udp()]))
    with pytest.warns(CaptureWarning, match="1 packets of 2 that the flows had: their captures have changed"):
        write_packets([path], flows, out)


def test_what_cannot_be_read_again_is_refused_before_anything_is_written(write, out, tmp_path):
    path = write(pcap([udp()]))
    flows = RAW.flows(path)
    os.mkfifo(tmp_path / "fifo")
    for source in (tmp_path / "fifo", tmp_path / "none.pcap", io.BytesIO()):
        with pytest.raises(ValueError, match="is not a file, so the packets of alarms cannot be read from it again"):
            write_packets([path, source], flows, out)
    with pytest.raises(ValueError, match=r"flows of .*capture.pcap, which is not among the captures"):
        write_packets([write(pcap([udp()]), "other.pcap")], flows, out)
    assert not out.exists()


@pytest.mark.skipif(not os.path.isfile("/proc/self/mem"), reason="there is no file here that opens but cannot be read")
def test_the_file_is_there_whole_or_as_it_was(write, out):
    path = write(pcap([udp()]))
    out.write_bytes(b"before")
    with pytest.raises(OSError, match="Input/output error"):
        write_packets([path, "/proc/self/mem"], RAW.flows(path), out)
    assert out.read_bytes() == b"before"
    assert sorted(p.name for p in out.parent.iterdir()) == [out.name, path.name]


def test_a_pipe_is_written_to(write, tmp_path):
    path = write(pcap([udp()]))
    read, written = os.pipe()
    with open(read, "rb") as reader:
        assert write_packets([path], RAW.flows(path), f"/dev/fd/{written}") == 1
        os.close(written)
        (tmp_path / "copy.pcapng").write_bytes(reader.read())
    assert packets_in(tmp_path / "copy.pcapng") == all_packets(path)


def test_many_flows_of_one_five_tuple_are_found_quickly(write, out):
    n_flows = 3000
    path = write(pcap([bytes(udp(payload=b"x"))] * n_flows, times=[200.0 * i for i in range(n_flows)]))
    flows = RAW.flows(path)
    assert len(flows) == n_flows
    assert write_packets([path], flows[::2], out) == n_flows / 2
    assert [time // NS for _, time, _, _ in packets_in(out)] == list(range(0, 200 * n_flows, 400))


# --------------------------------------------------------------------------------------------------------------------
# The last packets of a live source


def filled(path, max_bytes=2**20, size=None):
    """Return a ring to which a capture was given, in blocks of so many records."""
    ring = PacketRing(max_bytes)
    for data, records in blocks_of(path):
        for first in range(0, len(records), size or len(records)):
            ring.add(data, records[first : first + (size or len(records))])
    return ring


def written(ring, flows, out):
    with open(out, "wb") as file:
        n_packets = ring.write(flows, PcapngWriter(file))
    found = packets_in(out)
    assert len(found) == n_packets
    return found


@pytest.mark.parametrize("size", [None, 1, 37])
def test_a_ring_with_room_has_all_packets_of_a_flow(traffic, parsed_traffic, out, size):
    flows = RAW.flows(traffic.train)
    ring = filled(traffic.train, size=size)
    for row in (0, 17, -1):
        assert written(ring, flows[row], out) == naive_packets(parsed_traffic, flows[row])
    assert written(ring, flows[:0], out) == []


def test_a_ring_forgets_the_oldest_packets_and_takes_no_more_memory(write, out):
    path = write(pcap([udp(payload=struct.pack(">I", i) + bytes(1000)) for i in range(1500)], times=range(1500)))
    ring = filled(path)
    assert ring.n_bytes <= 2**20
    found = written(ring, RAW.flows(path), out)
    assert found == all_packets(path)[-len(found) :]
    assert 2**20 / 2 < sum(len(data) for *_, data in found) < 2**20


def test_a_ring_keeps_link_types_apart_and_cuts_what_is_too_long(write, out):
    raw = bytes(udp(payload=b"raw", link=False))
    long = bytes(udp(payload=b"x")) + bytes(300_000)
    path = write(section() + interface(1) + interface(101) + enhanced(long) + enhanced(raw, number=1) + enhanced(udp()))
    assert written(filled(path), RAW.flows(path), out) == [
        (1, 0, len(long), long[:MAX_CAPTURED]), (101, 0, len(raw), raw), (1, 0, len(udp()), bytes(udp())),
    ]  # fmt: skip


def test_a_ring_with_too_little_room_is_refused():
    with pytest.raises(ValueError, match="max_bytes=1000 is too little"):
        PacketRing(1000)


def test_several_writes_make_one_file(traffic, out):
    flows, ring = RAW.flows(traffic.train), filled(traffic.train)
    with open(out, "wb") as file:
        writer = PcapngWriter(file)
        for row in range(5):
            ring.write(flows[row], writer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert signatures(FlowSampler(fields="raw", reorder_window=1000).flows(out)) == signatures(flows[:5])
    assert out.read_bytes().count(struct.pack("<I", 0x0A0D0D0A)) == 1
