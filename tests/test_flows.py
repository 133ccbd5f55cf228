"""Flows: the compiled engine agrees with the slow twin, and each flow rule holds by itself."""

import io
import shutil

import naive
import numba
import numpy as np
import pytest
from captures import enhanced, interface, pcap, section, simple, tcp, udp, udp6
from conftest import real_captures
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import EXTENSIONS, LINK_LAYERS, NOT_SAMPLED, OUTER, RAW, TUNNELS, VXLAN_HEADER, Ether
from scapy.layers.inet import IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import (
    IPv6,
)
from scapy.layers.l2 import ARP, GRE, CookedLinuxV2

from sklearn_docids import FlowSampler
from sklearn_docids.capture import _native
from sklearn_docids.capture.containers import Capture
from sklearn_docids.capture.flows import STAGED_ROWS, FlowAssembler, FlowRules
from sklearn_docids.capture.headers import PACKET_FATES
from sklearn_docids.capture.kernels import FLOW_DTYPE

RULES = FlowRules(
    n_packets=4, n_bytes=80, bidirectional=True, idle_timeout=1.0, tcp_restart=True, protocols=("tcp", "udp"),
    max_live_flows=10**6,
)  # fmt: skip


COLUMNS = (
    "src_ip", "src_port", "dst_ip", "dst_port", "protocol", "packets_forward", "packets_backward", "bytes_forward",
    "bytes_backward", "payload_forward", "payload_backward", "tcp_flags_forward", "tcp_flags_backward", "time_first",
    "time_last", "link_type", "begin", "end",
)  # fmt: skip


COUNTED = [name for name in FLOW_DTYPE.names if name != "truncated"]


def flows_of(packets, link_type=1, times=None, **parameters):
    return FlowSampler(fields="raw", **parameters).flows(io.BytesIO(pcap(packets, link_type=link_type, times=times)))


def assert_rows_equal_to_naive(flows, expected, n_packets, n_bytes, layout):
    X = np.array([flow.row(n_packets, n_bytes, layout) for flow in expected]).reshape(-1, n_packets * n_bytes)
    assert flows.X.tobytes() == X.tobytes()
    assert flows.kept_bytes.tolist() == [flow.kept_bytes(n_packets, n_bytes, layout) for flow in expected]
    assert flows.payload_lengths.tolist() == [flow.payload_lengths(n_packets, layout) for flow in expected]
    assert flows.truncated.tolist() == [flow.truncated(n_packets, n_bytes, layout) for flow in expected]


def assert_equal_to_naive(path, n_packets=4, n_bytes=80, **parameters):
    expected, fates = naive.sample(path, n_packets, **parameters)
    payload = FlowSampler(n_packets, max(n_bytes, 9), layout="payload", fields="raw", **parameters).flows(path)
    assert_rows_equal_to_naive(payload, expected, n_packets, max(n_bytes, 9), "payload")
    flows = FlowSampler(n_packets, n_bytes, fields="raw", **parameters).flows(path)
    assert_rows_equal_to_naive(flows, expected, n_packets, n_bytes, "packets")
    assert (payload.rows.records[COUNTED] == flows.rows.records[COUNTED]).all()
    assert list(zip(*(flows[name].tolist() for name in COLUMNS), strict=True)) == [
        (*f.source, *f.destination, f.protocol, *f.packets, *f.bytes, *f.payload, *f.flags, f.time_first, f.time_last,
         f.link_type, f.begin, f.how_it_ended())
        for f in expected
    ]  # fmt: skip
    counters = {name: n for name, n in flows.counters[0].items() if n and name in PACKET_FATES}
    assert counters == fates
    return flows


@pytest.mark.parametrize("path", real_captures(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_real_captures_agree_with_the_slow_twin_byte_for_byte(path):
    assert_equal_to_naive(path)


ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"])
PORTS = st.integers(1, 4)


@st.composite
def traffic(draw):
    """Packets that share few five-tuples, with all that a flow rule looks at."""
    packets, times, time = [], [], 1000.0
    for _ in range(draw(st.integers(0, 30))):
        time += draw(st.sampled_from([0.0, 0.5, 30.0, 119.0, 121.0, -0.2, -500.0, 1.7e9, -1.7e9]))
        src, dst, sport, dport = draw(ADDRESSES), draw(ADDRESSES), draw(PORTS), draw(PORTS)
        payload = bytes(draw(st.integers(0, 60)))
        if draw(st.booleans()):
            flags = draw(st.sampled_from(["S", "SA", "A", "PA", "FA", "R"]))
            packets.append(tcp(sport, dport, flags, payload, src, dst))
        else:
            packets.append(udp(sport, dport, payload, src, dst))
        time = min(max(time, 0.0), 4e9)
        times.append(time)
    captured = [draw(st.sampled_from([200, len(bytes(p)), 60, 44, 36, 20])) for p in packets]
    return pcap(packets, times=times, captured=captured)


@settings(max_examples=60, deadline=None)
@given(
    capture=traffic(),
    n_packets=st.integers(1, 5),
    n_bytes=st.sampled_from([1, 34, 80, 200]),
    bidirectional=st.booleans(),
    idle_timeout=st.sampled_from([None, 0.4, 120.0]),
    tcp_restart=st.booleans(),
    max_live_flows=st.sampled_from([1, 2, 1000]),
    duplicate_window=st.sampled_from([0, 1, 5]),
)
def test_any_traffic_agrees_with_the_slow_twin(tmp_path_factory, capture, **parameters):
    path = tmp_path_factory.mktemp("traffic") / "capture.pcap"
    path.write_bytes(capture)
    assert_equal_to_naive(path, **parameters)


@pytest.mark.parametrize(("link_type", "packet", "header"), LINK_LAYERS.values(), ids=LINK_LAYERS)
def test_each_link_type_is_parsed_and_its_header_kept(link_type, packet, header, write):
    path = write(pcap([packet], link_type=link_type))
    flows = assert_equal_to_naive(path)
    assert (flows.src_port[0], flows.dst_port[0], flows.payload_forward[0]) == (5, 53, 7)
    assert flows.X[0, :80].tobytes().rstrip(b"\0") == bytes(packet)[:80]
    assert flows.X[0, header] >> 4 == (6 if "6" in str(flows.src_ip[0]) or ":" in flows.src_ip[0] else 4)


def test_cisco_hdlc_is_parsed():
    assert flows_of([b"\x0f\x00\x08\x00" + bytes(RAW)], link_type=50).dst_port.tolist() == [53]


@pytest.mark.parametrize(("link_type", "packet", "header"), LINK_LAYERS.values(), ids=LINK_LAYERS)
def test_a_packet_cut_anywhere_gives_a_prefix_of_its_row(link_type, packet, header):
    packet = bytes(packet)
    whole = flows_of([packet], link_type=link_type).X[0]
    for length in range(len(packet)):
        capture = pcap([packet], link_type=link_type, captured=[length])
        flows = FlowSampler(fields="raw").flows(io.BytesIO(capture))
        counters = flows.counters[0]
        assert counters["sampled"] + counters["short"] == 1
        for row in flows.X:
            assert (row[:length] == whole[:length]).all()
            assert not row[length:].any()


def test_a_vlan_tag_behind_a_linux_cooked_2_header_is_skipped():
    packet = bytes(CookedLinuxV2(proto=0x8100)) + b"\x00\x05\x08\x00" + bytes(RAW)
    assert flows_of([packet], link_type=276).dst_port.tolist() == [53]


@pytest.mark.parametrize("between", EXTENSIONS.values(), ids=EXTENSIONS)
def test_ipv6_extension_headers_are_skipped(between, write):
    flows = assert_equal_to_naive(write(pcap([udp6(payload=b"abc", between=between)])))
    assert (flows.src_ip[0], flows.dst_port[0], flows.payload_forward[0]) == ("fd00::1", 53, 3)


def test_ipv6_authentication_header_is_skipped():
    ah = bytes([17, 4, 0, 0]) + bytes(20)
    packet = Ether() / IPv6(src="fd00::1", dst="fd00::2", nh=51, plen=32) / (ah + bytes(UDP(sport=5, dport=53)))
    assert flows_of([packet]).dst_port.tolist() == [53]


def test_ipv4_options_move_the_ports():
    packet = Ether() / IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_RR()]) / UDP(sport=5, dport=53)
    assert flows_of([packet]).dst_port.tolist() == [53]


@pytest.mark.parametrize(("packet", "fate"), NOT_SAMPLED.values(), ids=NOT_SAMPLED)
def test_what_is_not_sampled_is_counted_by_its_reason(packet, fate):
    flows = flows_of([packet, udp()])
    counters = flows.counters[0]
    assert {name: n for name, n in counters.items() if n and name in PACKET_FATES} == {fate: 1, "sampled": 1}
    assert (counters["packets"], counters["flows"]) == (2, 1)
    assert sum(flows.ignored[0].values()) == (fate in ("non_ip", "other_protocol"))


def test_counts_by_fate_add_up_to_the_packets_read():
    counters = flows_of([packet for packet, _ in NOT_SAMPLED.values()]).counters[0]
    assert sum(counters[fate] for fate in PACKET_FATES) == len(NOT_SAMPLED)


@pytest.mark.parametrize("packet", [tcp(payload=b"x" * 40), udp6(payload=b"y" * 40)])
def test_every_captured_length_gives_a_prefix_of_the_whole_row(packet):
    whole = flows_of([packet]).X[0]
    for length in range(len(bytes(packet)) + 1):
        rows = FlowSampler(fields="raw").flows(io.BytesIO(pcap([packet], captured=[length]))).X
        for row in rows:
            assert (row[:length] == whole[:length]).all()
            assert not row[length:].any()


def test_both_directions_are_one_flow_named_after_its_first_packet():
    back = tcp(80, 1000, "SA", src="10.0.0.2", dst="10.0.0.1")
    flows = flows_of([tcp(), back, tcp(flags="A")])
    assert (flows.src_port.tolist(), flows.packets_forward.tolist(), flows.packets_backward.tolist()) == (
        [1000],
        [2],
        [1],
    )
    assert (flows.tcp_flags_forward[0], flows.tcp_flags_backward[0]) == (0x12, 0x12)


def test_directions_are_flows_of_their_own_if_asked_for():
    back = tcp(80, 1000, "SA", src="10.0.0.2", dst="10.0.0.1")
    assert flows_of([tcp(), back], bidirectional=False).src_port.tolist() == [1000, 80]


@pytest.mark.parametrize(("gap", "n_flows"), [(120.0, 1), (120.000001, 2)])
def test_a_five_tuple_idle_for_longer_than_the_timeout_begins_a_new_flow(gap, n_flows):
    assert len(flows_of([udp(), udp()], times=[0.0, gap])) == n_flows
    assert len(flows_of([udp(), udp()], times=[0.0, gap], idle_timeout=None)) == 1


def test_one_wrong_time_stamp_does_not_switch_the_timeout_off():
    times = [0.0, 4_000_000_000.0, 1.0, 2.0, 200.0]
    flows = flows_of([udp(sport=1), udp(sport=9), udp(sport=1), udp(sport=1), udp(sport=1)], times=times)
    # The absurd jump idles the first flow out once; after the step back, 1 s is no gap and 198 s is one.
    assert flows.packets_forward.tolist() == [1, 1, 2, 1]


def test_one_stray_time_stamp_from_the_past_ends_no_flow():
    packets = [udp(sport=1 + i % 10) for i in range(100)]
    times = [1000.0 + i for i in range(100)]
    times[37] = 0.0
    assert flows_of(packets, times=times).packets_forward.tolist() == [10] * 10


def test_the_clock_does_not_overflow(write):
    # Each pair of stamps from both ends of time moves it by the timeout of a century's fraction.
    packets = [udp(sport=1 + i % 7) for i in range(600)]
    times = [4.0e9 if i // 2 % 2 else float(i) for i in range(600)]
    path = write(pcap(packets, times=times))
    for idle_timeout in (1e9, 2e9, 2.3e9, None):
        assert_equal_to_naive(path, idle_timeout=idle_timeout)
        assert_equal_to_naive(path, idle_timeout=idle_timeout, max_live_flows=2)


def test_rows_of_any_length_take_memory_by_need():
    assert flows_of([udp()], n_packets=1024, n_bytes=65_535).X.shape == (1, 1024 * 65_535)


def test_many_wrong_time_stamps_do_not_switch_the_timeout_off():
    times = [t for i in range(6) for t in (1.7e9 + i, 0.0)] + [1.7e9 + 1000 * i for i in range(1, 5)]
    flows = flows_of([udp()] * len(times), times=times)
    assert flows.packets_forward[-4:].tolist() == [1, 1, 1, 1]


def test_packets_without_a_time_stamp_take_that_of_the_packet_before():
    capture = section() + interface()
    for second in range(1, 5):
        capture += enhanced(udp(), second * 10**6) + simple(udp(sport=7))
    flows = FlowSampler(fields="raw").flows(io.BytesIO(capture))
    assert flows.packets_forward.tolist() == [4, 4]
    assert flows.time_last.tolist() == [4 * 10**9] * 2


def test_records_hold_no_padding_that_could_carry_old_memory():
    assert FLOW_DTYPE.itemsize == sum(FLOW_DTYPE[name].itemsize for name in FLOW_DTYPE.names)


def test_a_table_that_is_just_large_enough_grows():
    packets = [udp(sport=i % 60_000 + 1) for i in range(3000)]
    sizes = []
    assembler = FlowAssembler(RULES, lambda rows: sizes.append(len(rows)))
    capture = Capture(io.BytesIO(pcap(packets, times=np.arange(3000) / 1023)), "x")
    for data, records in capture.blocks():
        assembler.add(data, records)
    for _ in assembler.finish():
        pass
    assert sum(sizes) == 3000
    assert len(sizes) < 10  # not a call for every flow that idles out


@pytest.mark.parametrize("end", ["FA", "R"])
def test_a_syn_after_the_end_of_a_connection_begins_a_new_flow(end):
    packets = [tcp(), tcp(flags=end), tcp(flags="A"), tcp(), tcp(flags="A")]
    assert flows_of(packets).packets_forward.tolist() == [3, 2]
    assert flows_of(packets, tcp_restart=False).packets_forward.tolist() == [5]


def test_a_repeated_syn_does_not():
    assert flows_of([tcp(), tcp()]).packets_forward.tolist() == [2]


def test_the_ethernet_trailer_is_not_copied():
    assert not flows_of([bytes(udp()) + b"\xaa" * 18]).X[0, 42:80].any()


def test_ip_length_zero_counts_as_captured_length():
    packet = Ether() / IP(src="10.0.0.1", dst="10.0.0.2", len=0) / UDP(sport=5, dport=53) / b"payload"
    flows = flows_of([packet])
    assert flows.X[0, 42:49].tobytes() == b"payload"
    assert flows.payload_forward.tolist() == [7]


@pytest.mark.parametrize(("captured", "truncated"), [(1000, False), (80, False), (79, True)])
def test_truncated_says_that_the_row_lacks_bytes(captured, truncated):
    capture = pcap([udp(payload=b"x" * 200)], captured=[captured])
    flows = FlowSampler(fields="raw").flows(io.BytesIO(capture))
    assert flows.truncated.tolist() == [truncated]
    assert flows.payload_forward.tolist() == [200]
    assert flows.kept_bytes[0].tolist() == [min(captured, 80), 0, 0, 0]


@pytest.mark.parametrize(("packet", "link_type", "inner"), TUNNELS.values(), ids=TUNNELS)
def test_the_innermost_packet_of_a_tunnel_makes_the_flow_if_asked_for(packet, link_type, inner, write):
    flows = assert_equal_to_naive(write(pcap([packet])), tunnels="innermost")
    assert (flows.link_type.tolist(), flows.dst_port.tolist()) == ([link_type], [53])
    assert flows.X[0, :80].tobytes().rstrip(b"\0") == bytes(inner)[:80]


@pytest.mark.parametrize(("packet", "link_type", "inner"), TUNNELS.values(), ids=TUNNELS)
def test_the_outermost_packet_of_a_tunnel_makes_the_flow_by_default(packet, link_type, inner, write):
    flows = assert_equal_to_naive(write(pcap([packet])))
    assert flows.counters[0]["sampled" if isinstance(packet.payload.payload, UDP) else "other_protocol"] == 1


@pytest.mark.parametrize(("packet", "link_type", "inner"), TUNNELS.values(), ids=TUNNELS)
def test_a_tunnelled_packet_cut_anywhere_gives_a_prefix_of_its_row(packet, link_type, inner):
    packet, row = bytes(packet), bytes(inner)[:80].ljust(80, b"\0")
    for length in range(len(packet)):
        capture = pcap([packet], captured=[length])
        flows = FlowSampler(fields="raw", tunnels="innermost").flows(io.BytesIO(capture))
        counters = flows.counters[0]
        assert sum(counters[fate] for fate in ("sampled", "short", "other_protocol")) == 1
        if len(flows) and flows.dst_port[0] == 53:
            n_kept = flows.kept_bytes[0, 0]
            assert flows.X[0, :80].tobytes() == row[:n_kept].ljust(80, b"\0")


def test_a_tunnel_that_carries_no_ip_leaves_the_packet_around_it():
    vxlan = OUTER / VXLAN_HEADER / bytes(Ether() / ARP())
    flows = flows_of([vxlan, OUTER / GRE(proto=0x0806) / bytes(ARP())], tunnels="innermost")
    assert flows.dst_port.tolist() == [4789]
    assert flows.counters[0]["other_protocol"] == 1


@pytest.mark.parametrize(
    "inside", [b"\x08\0", bytes(6) + bytes(60), bytes(6) + b"\2" * 12 + b"\x08\x00E\x00" + bytes(60)]
)
def test_what_merely_looks_like_a_tunnel_leaves_the_packet_around_it(inside):
    packet = OUTER / UDP(sport=999, dport=4789) / (b"\x08" + inside)
    flows = flows_of([packet], tunnels="innermost")
    assert (flows.dst_port.tolist(), flows.counters[0]["sampled"]) == ([4789], 1)


@pytest.mark.parametrize(("protocol", "between"), [(4, b""), (47, bytes(GRE(proto=0x0800)))], ids=["ip in ip", "gre"])
def test_2000_tunnels_one_in_another_are_malformed(protocol, between):
    header = bytes(IP(src="10.0.0.1", dst="10.0.0.2", len=0, proto=protocol)) + between  # length 0: as captured
    assert flows_of([bytes(Ether(type=0x0800)) + header * 2000], tunnels="innermost").counters[0]["malformed"] == 1


def test_exact_repeats_within_the_window_are_dropped_and_counted(write):
    packets = [udp(sport=1), udp(sport=1), udp(sport=2), udp(sport=1), Ether() / ARP(), Ether() / ARP()]
    for window, duplicates in ((0, 0), (1, 2), (2, 3), (65_536, 3)):
        flows = assert_equal_to_naive(write(pcap(packets)), duplicate_window=window)
        assert flows.counters[0]["duplicate"] == duplicates


def test_a_packet_that_differs_in_one_byte_or_in_length_is_no_duplicate():
    packet = bytes(udp(payload=b"x" * 30))
    variants = [packet[:i] + bytes([packet[i] ^ 1]) + packet[i + 1 :] for i in range(len(packet))]
    variants = variants[14:]  # what stands before the IP header differs between the links of a packet's way
    assert flows_of([packet, *variants], duplicate_window=100).counters[0]["duplicate"] == 0
    assert flows_of([*variants, *variants], duplicate_window=100).counters[0]["duplicate"] == len(variants)


def test_protocols_can_be_left_out():
    counters = flows_of([tcp(), udp()], protocols=("udp",)).counters[0]
    assert (counters["flows"], counters["other_protocol"]) == (1, 1)


def test_the_same_five_tuple_on_two_link_types_is_two_flows():
    capture = section() + interface(1) + interface(101)
    capture += enhanced(Ether() / RAW, number=0) + enhanced(RAW, number=1)
    assert FlowSampler(fields="raw").flows(io.BytesIO(capture)).link_type.tolist() == [1, 101]


def test_ipv4_and_mapped_ipv6_addresses_are_not_mixed_up():
    mapped = IPv6(src="::a00:1", dst="::a00:2") / UDP(sport=5, dport=53)
    flows = flows_of([Ether() / RAW, Ether() / mapped])
    assert flows.src_ip.tolist() == ["10.0.0.1", "::a00:1"]


def test_an_endpoint_that_talks_to_itself_is_one_forward_flow():
    packet = udp(5, 5, src="10.0.0.1", dst="10.0.0.1")
    assert flows_of([packet, packet]).packets_forward.tolist() == [2]


def test_max_live_flows_ends_the_longest_idle_flow_and_counts_it():
    packets = [udp(sport=1), udp(sport=2), udp(sport=1), udp(sport=3), udp(sport=1), udp(sport=2)]
    flows = flows_of(packets, max_live_flows=2)
    assert list(zip(flows.src_port, flows.packets_forward, strict=True)) == [(1, 3), (2, 1), (3, 1), (2, 1)]
    assert flows.counters[0]["flows_evicted"] == 2


def test_more_flows_than_any_queue_or_table_starts_with_come_out_in_order():
    n_flows = 3 * STAGED_ROWS + 5
    header = bytes(udp())
    packets = [header[:26] + i.to_bytes(4, "big") + header[30:] for i in range(n_flows)]
    flows = flows_of(packets, times=np.arange(n_flows) / 1000)
    assert [int.from_bytes(row[26:30].tobytes(), "big") for row in flows.X] == list(range(n_flows))
    assert (flows.packets_forward == 1).all()


def test_interleaving_flows_changes_their_order_alone():
    dialogues = [[tcp(sport=s, flags=f, payload=bytes([s] * 5)) for f in ("S", "A", "PA", "FA")] for s in range(1, 6)]
    one_by_one = flows_of([p for dialogue in dialogues for p in dialogue], times=[0.0] * 20)
    in_turn = flows_of([p for turn in zip(*dialogues, strict=True) for p in turn], times=[0.0] * 20)
    assert (one_by_one.X == in_turn.X).all()


def test_tcp_flags_and_payload_of_a_header_cut_by_the_capture_do_not_read_beyond_it():
    flows = FlowSampler(fields="raw").flows(io.BytesIO(pcap([tcp(flags="SA", payload=b"x" * 10)], captured=[40])))
    assert flows.tcp_flags_forward.tolist() == [0]
    assert flows.payload_forward.tolist() == [10]


def test_tcp_data_offset_that_lies_gives_no_negative_payload():
    for lie in (15, 0, 1):
        packet = Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(dataofs=lie)
        assert flows_of([packet]).payload_forward.tolist() == [0]


def test_community_id_is_that_of_the_reference_package():
    communityid = pytest.importorskip("communityid")
    flows = flows_of([tcp(), udp(src="10.0.0.9"), udp6(), udp6(src="fd00::9", dst="fd00::1")])
    make = {6: communityid.FlowTuple.make_tcp, 17: communityid.FlowTuple.make_udp}
    columns = (flows[name].tolist() for name in ("protocol", "src_ip", "dst_ip", "src_port", "dst_port"))
    expected = [communityid.CommunityID().calc(make[p](s, d, sp, dp)) for p, s, d, sp, dp in zip(*columns, strict=True)]
    assert flows.community_id.tolist() == expected


def test_kernels_compile_where_no_cache_can_be_written_and_say_so_once(monkeypatch):
    def no_locator(function):
        raise RuntimeError("cannot cache function: no locator available for file")

    monkeypatch.setattr(_native, "_KernelCache", no_locator)
    _native._warn_unkept.cache_clear()
    with pytest.warns(UserWarning, match=r"each process compiles them anew.*NUMBA_CACHE_DIR") as caught:
        doubled, tripled = _native.kernel(lambda x: 2 * x), _native.kernel(lambda x: 3 * x)
    assert (len(caught), doubled(21), tripled(21)) == (1, 42, 63)


def test_kernels_are_kept_and_run_where_they_cannot_be_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kept"))
    assert _native.kernel(lambda x: 2 * x)(21) == 42
    assert list((tmp_path / "kept").rglob("*.nbc"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "lost"))
    doubled, tripled = _native.kernel(lambda x: 2 * x), _native.kernel(lambda x: 3 * x)
    shutil.rmtree(tmp_path / "lost")
    (tmp_path / "lost").touch()
    _native._warn_unkept.cache_clear()
    with pytest.warns(UserWarning, match=r"cannot be written to .*lost.*NUMBA_CACHE_DIR") as caught:
        assert (doubled(21), tripled(21)) == (42, 63)
    assert len(caught) == 1
