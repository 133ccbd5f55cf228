"""Header-field policies: what they touch, what they leave, and that randomisation keeps a flow consistent."""

import io
import random
from ipaddress import ip_address

import hypothesis
import mutations
import naive
import numpy as np
import pytest
from captures import pcap, tcp, udp, udp6
from hypothesis import given
from hypothesis import strategies as st
from packets import LINK_LAYERS, TUNNELS
from scapy.layers.inet import IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.l2 import CookedLinux, CookedLinuxV2, Dot1Q, Ether
from scapy.utils import checksum

from sklearn_docids import CaptureError, FlowSampler
from sklearn_docids.capture.fields import FIELDS, apply_fields, policy_actions
from sklearn_docids.capture.flows import FlowRows
from sklearn_docids.capture.kernels import FLOW_DTYPE

OPTIONS = [("MSS", 1460), ("NOP", None), ("NOP", None), ("Timestamp", (1111, 2222))]
DIALOGUE = [
    tcp(1000, 80, "S", seq=100, options=OPTIONS),
    tcp(80, 1000, "SA", src="10.0.0.2", dst="10.0.0.1", seq=500, ack=101, options=OPTIONS),
    tcp(1000, 80, "A", seq=101, ack=501),
    tcp(1000, 80, "PA", b"hello", seq=101, ack=501),
]
DIALOGUE[1].src, DIALOGUE[1].dst = DIALOGUE[0].dst, DIALOGUE[0].src
PACKET = IP(src="10.0.0.1", dst="10.0.0.2") / UDP()
# Byte ranges of the fields in an Ethernet frame with IPv4 and TCP without IP options.
SPANS = {
    "mac": [(0, 12)], "ip": [(26, 34)], "ports": [(34, 38)], "ip_id": [(18, 20)], "ttl": [(22, 23)],
    "checksums": [(24, 26), (50, 52)], "tcp_seq": [(38, 46)], "tcp_window": [(48, 50)], "tcp_options": [(54, 70)],
    "tcp_timestamps": [(62, 70)],
}  # fmt: skip


def rows(packets, fields, training=True, seed=0, link_type=1, captured=None):
    sampler = FlowSampler(fields=fields, random_state=seed)
    capture = io.BytesIO(pcap(packets, link_type=link_type, captured=captured))
    return sampler.fit_transform(capture) if training else sampler.transform(capture)


def changed(before, after):
    return set(np.flatnonzero((before != after).any(axis=0)).tolist())


def in_spans(spans):
    return {i for first, last in spans for i in range(first, last)}


@pytest.mark.parametrize("name", FIELDS)
def test_zero_changes_its_field_and_the_checksums_that_cover_it_only(name):
    raw, zeroed = rows(DIALOGUE, "raw"), rows(DIALOGUE, {name: "zero"}, training=False)
    first = changed(raw[:, :80], zeroed[:, :80])
    assert first <= in_spans(SPANS[name]) | in_spans(SPANS["checksums"])
    for start, stop in SPANS[name]:
        assert not zeroed[0, start:stop].any()


@pytest.mark.parametrize("name", FIELDS)
def test_randomize_changes_its_field_in_training_only(name):
    raw = rows(DIALOGUE, "raw")
    assert (rows(DIALOGUE, {name: "randomize"}, training=False) == raw).all()
    first = changed(raw[:, :80], rows(DIALOGUE, {name: "randomize"})[:, :80])
    assert first & in_spans(SPANS[name])
    assert first <= in_spans(SPANS[name]) | in_spans(SPANS["checksums"])


def test_the_paper_policy_randomises_training_data_and_keeps_scoring_data():
    sampler = FlowSampler(fields="paper", random_state=0)
    capture = pcap(DIALOGUE)
    raw = FlowSampler(fields="raw").transform(io.BytesIO(capture))
    assert (sampler.transform(io.BytesIO(capture)) == raw).all()
    assert (raw == sampler.flows(io.BytesIO(capture)).X).all()
    trained = sampler.fit_transform(io.BytesIO(capture))
    assert changed(raw[:, :80], trained[:, :80]) <= in_spans(SPANS["mac"] + SPANS["ip"] + SPANS["checksums"])
    assert (sampler.sample(io.BytesIO(capture))[0] == trained).all()


def test_the_default_policy_zeroes_addresses_everywhere():
    sampler, capture = FlowSampler(random_state=0), pcap(DIALOGUE)
    raw = FlowSampler(fields="raw").transform(io.BytesIO(capture))
    trained = sampler.fit_transform(io.BytesIO(capture))
    assert (sampler.transform(io.BytesIO(capture)) == trained).all()
    assert changed(raw[:, :80], trained[:, :80]) <= in_spans(SPANS["mac"] + SPANS["ip"] + SPANS["checksums"])
    assert (trained[:, sorted(in_spans(SPANS["mac"] + SPANS["ip"]))] == 0).all()


def test_random_addresses_are_swapped_between_directions():
    row = rows(DIALOGUE, "paper")[0]
    forward, backward = row[:80], row[80:160]
    assert (forward[26:30] == backward[30:34]).all()
    assert (forward[30:34] == backward[26:30]).all()
    assert (forward[0:6] == backward[6:12]).all()
    assert (forward[26:30] != forward[30:34]).any()
    assert (forward[26:34] == row[160:][26:34]).all()


def test_an_address_becomes_another_one_in_each_flow():
    X = rows([tcp(sport=s) for s in range(1, 200)], "paper")
    assert len(np.unique(X[:, 26:30], axis=0)) == 199
    # Every byte value turns up somewhere: uniform bytes, not a shifted copy.
    assert len(np.unique(X[:, 26:30])) > 200


def test_a_seed_gives_the_same_addresses_again_and_another_seed_others():
    assert (rows(DIALOGUE, "paper", seed=3) == rows(DIALOGUE, "paper", seed=3)).all()
    assert (rows(DIALOGUE, "paper", seed=3) != rows(DIALOGUE, "paper", seed=4)).any()


def valid_checksums(frame):
    """Whether the sums over header and pseudo-header come out as zero (RFC 1071), by scapy's arithmetic."""
    ip = frame[14:]
    if ip[0] >> 4 == 4:
        header, protocol, addresses = 4 * (ip[0] & 15), ip[9], ip[12:20]
        if checksum(ip[:header]):
            return False
    else:
        header, protocol, addresses = 40, ip[6], ip[8:40]
    segment = ip[header:]
    return checksum(addresses + len(segment).to_bytes(4, "big") + bytes([0, 0, 0, protocol]) + segment) == 0


@pytest.mark.parametrize("action", ["zero", "randomize"])
@pytest.mark.parametrize(
    "name", ["ip", "ports", "ip_id", "ttl", "tcp_seq", "tcp_window", "tcp_options", "tcp_timestamps"]
)
def test_valid_checksums_stay_valid(name, action):
    raw, row = rows(DIALOGUE, "raw")[0], rows(DIALOGUE, {name: action})[0]
    assert (raw != row).any()
    for number, packet in enumerate(DIALOGUE):
        assert valid_checksums(row[80 * number : 80 * number + len(bytes(packet))].tobytes())


@pytest.mark.parametrize("packet", [udp(payload=b"abc"), udp6(payload=b"abcd"), udp6(payload=b"odd")])
def test_valid_udp_checksums_stay_valid(packet):
    row = rows([packet], "paper")[0]
    assert valid_checksums(row[: len(bytes(packet))].tobytes())


def test_a_udp_checksum_of_zero_means_none_and_stays():
    packet = udp(payload=b"abc")
    packet[UDP].chksum = 0
    assert rows([packet], "paper")[0, 40:42].tolist() == [0, 0]


def test_ipv6_addresses_flow_label_and_hop_limit():
    packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IPv6(
        src="fd00::1", dst="fd00::2", tc=0xAB, fl=0x12345
    )
    packet = packet / TCP(sport=5, dport=80)
    row = rows([packet], "portable")[0]
    assert not row[22:54].any()
    assert row[14:18].tolist() == [0x6A, 0xB0, 0, 0]  # version and traffic class stay
    assert row[21] == 0
    assert row[54:58].tolist() == [0, 5, 0, 80]


@pytest.mark.parametrize(
    ("link_type", "packet", "header"),
    [
        (1, Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / Dot1Q(vlan=7) / PACKET, 18),
        (113, CookedLinux(proto=0x0800, lladdrlen=6, src=b"\1\2\3\4\5\6") / PACKET, 16),
        (276, CookedLinuxV2(proto=0x0800, lladdrlen=6, src=b"\1\2\3\4\5\6") / PACKET, 20),
        (101, PACKET, 0),
    ],
    ids=["vlan", "linux cooked", "linux cooked 2", "raw"],
)  # fmt: skip
def test_addresses_are_found_behind_every_link_header(link_type, packet, header):
    row = rows([packet], {"mac": "zero", "ip": "zero"}, link_type=link_type)[0]
    assert not row[header + 12 : header + 20].any()
    link_addresses = {1: (0, 12), 113: (6, 14), 276: (12, 20), 101: (0, 0)}[link_type]
    assert not row[slice(*link_addresses)].any()


@pytest.mark.parametrize(("link_type", "packet", "header"), LINK_LAYERS.values(), ids=LINK_LAYERS)
def test_no_address_is_left_behind_any_link_header(link_type, packet, header):
    addresses = dict.fromkeys(("mac", "ip", "checksums"), "zero")
    row = FlowSampler(fields=addresses).transform(io.BytesIO(pcap([packet], link_type=link_type)))[0, :80].tobytes()
    for address in ("10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"):
        assert ip_address(address).packed not in row
    for end in (1, 2):
        assert bytes.fromhex(f"02000000000{end}") not in row


@pytest.mark.parametrize(("packet", "link_type", "inner"), TUNNELS.values(), ids=TUNNELS)
def test_addresses_of_the_innermost_packet_of_a_tunnel_are_found(packet, link_type, inner):
    sampler = FlowSampler(tunnels="innermost", fields={"ip": "zero", "mac": "zero", "checksums": "zero"})
    row = sampler.transform(io.BytesIO(pcap([packet])))[0, :80].tobytes()
    for address in ("10.9.0.1", "10.9.0.2", "fd00::1", "fd00::2"):
        assert ip_address(address).packed not in row
    assert row[-80:].count(b"payload") == 1


def test_padding_behind_a_cut_packet_stays_zero():
    for length in range(43):
        X = rows([tcp()], dict.fromkeys(FIELDS, "randomize"), captured=[length])
        assert not X[:, length:].any()


def test_addresses_in_ip_options_and_routing_headers_go_too():
    link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    route = IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_RR(routers=["192.168.7.7"])])
    row = rows([link / route / UDP(sport=5, dport=53)], {"ip": "zero"})[0]
    assert bytes([192, 168, 7, 7]) not in row.tobytes()
    assert row[42:46].tolist() == [0, 5, 0, 53]
    listed = IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(addresses=["fd00::9"])
    row = rows([link / listed / UDP(sport=5, dport=53)], {"ip": "zero"})[0]
    assert bytes.fromhex("fd00") not in row[54:].tobytes()


@pytest.mark.parametrize("packet", [tcp(payload=b"abc"), udp(payload=b"abcd"), udp6(payload=b"xyz")])
@pytest.mark.parametrize("action", ["zero", "randomize"])
def test_a_checksum_left_to_the_network_card_stays_the_sum_of_the_pseudo_header(packet, action):
    def pseudo(frame):
        ip = frame[14:]
        header, protocol, addresses = (20, ip[9], ip[12:20]) if ip[0] >> 4 == 4 else (40, ip[6], ip[8:40])
        return 0xFFFF - checksum(addresses + len(ip[header:]).to_bytes(4, "big") + bytes([0, 0, 0, protocol]))

    frame = bytearray(bytes(packet))
    at = {6: 50, 17: 40}[frame[23]] if frame[14] >> 4 == 4 else 60
    frame[at : at + 2] = pseudo(frame).to_bytes(2, "big")
    row = rows([bytes(frame)], {"ip": action})[0, : len(frame)].tobytes()
    assert row[22:54] != bytes(frame)[22:54]
    assert int.from_bytes(row[at : at + 2], "big") == pseudo(row)


def test_timestamps_and_other_options_have_their_own_actions():
    raw = rows(DIALOGUE, "raw")[0]
    row = rows(DIALOGUE, {"tcp_options": "randomize", "tcp_timestamps": "zero"})[0]
    assert not row[62:70].any()
    assert (row[54:62] != raw[54:62]).any()
    row = rows(DIALOGUE, {"tcp_options": "zero", "tcp_timestamps": "randomize"})[0]
    assert not row[54:62].any()
    assert row[62:70].any()


@pytest.mark.parametrize("options", [b"\x08\x00", b"\x08\x0a\x01", b"\x02", b"\x01" * 40, b"\x08\xff" + bytes(38)])
def test_option_lengths_that_lie_end_the_walk(options):
    header = bytearray(bytes(tcp())[:54] + options.ljust(40, b"\0"))
    header[46] = 0xF0
    header[16:18] = (94 - 14).to_bytes(2, "big")
    raw, zeroed = rows([bytes(header)], "raw"), rows([bytes(header)], {"tcp_timestamps": "zero"})
    assert changed(raw, zeroed) <= set(range(54, 80)) | {50, 51}


ACTION_MAPS = st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(("keep", "zero", "randomize")), min_size=1)
SETTINGS = st.fixed_dictionaries(
    {"n_bytes": st.sampled_from((40, 61, 80, 120)), "tunnels": st.sampled_from(("outermost", "innermost"))}
)


def assert_as_the_twin_says(data, fields, settings):
    """Compare rows in memory, as training data, to disk and as a stream with those of the naive twin."""
    try:
        raw = FlowSampler(fields="raw", **settings).flows(io.BytesIO(data))
    except CaptureError:
        return
    sampler = FlowSampler(fields=fields, random_state=1, **settings)
    zeros = {name: action for name, action in fields.items() if action == "zero"}
    expected = naive.with_policy(raw, zeros)
    assert (sampler.transform(io.BytesIO(data)) == expected).all()
    streamed = list(sampler.iter_flows(io.BytesIO(data)))
    if streamed:
        order = np.concatenate([flows.rows.records["row"] for flows in streamed])
        assert (np.concatenate([flows.X for flows in streamed]) == expected[order]).all()
    seed = int(np.random.RandomState(1).randint(2**63 - 1, dtype=np.int64))
    assert (sampler.fit_transform(io.BytesIO(data)) == naive.with_policy(raw, fields, seed)).all()


@pytest.mark.filterwarnings("ignore::sklearn_docids.CaptureWarning")
@given(fields=ACTION_MAPS, settings=SETTINGS, seed=st.integers(0, 10**6))
@hypothesis.settings(max_examples=60, deadline=None)
def test_rows_of_damaged_packets_are_those_of_the_twin(fields, settings, seed):
    assert_as_the_twin_says(mutations.damaged_packets(random.Random(seed)), fields, settings)


@given(fields=ACTION_MAPS, settings=SETTINGS, packet=st.sampled_from(mutations.PACKETS), data=st.data())
@hypothesis.settings(max_examples=150, deadline=None)
def test_rows_of_packets_cut_anywhere_are_those_of_the_twin(fields, settings, packet, data):
    link_type, packet = packet
    captured = data.draw(st.integers(0, len(packet)))
    assert_as_the_twin_says(pcap([packet] * 3, link_type=link_type, captured=[captured] * 3), fields, settings)


@pytest.mark.parametrize("fields", [dict.fromkeys(FIELDS, "zero"), {"ip": "zero"}, {"ip": "randomize", "mac": "zero"}])
def test_an_ip_length_left_to_the_network_card_is_that_of_the_row(fields):
    frames = []
    for packet in (tcp(payload=b"abc"), udp(payload=b"a" * 90), udp6(payload=b"xyz")):
        frame = bytearray(bytes(packet))
        frame[slice(16, 18) if frame[14] >> 4 == 4 else slice(18, 20)] = bytes(2)
        frames.append(bytes(frame))
    assert_as_the_twin_says(pcap(frames), fields, {})


def test_written_rows_are_those_in_memory(tmp_path):
    packets = [bytes(packet) for link_type, packet in mutations.PACKETS if link_type == 1]
    for policy in ("no_addresses", "portable"):
        sampler = FlowSampler(fields=policy, max_live_flows=2)
        sampler.write(io.BytesIO(pcap(packets)), tmp_path / "X.npy")
        assert (np.load(tmp_path / "X.npy") == sampler.transform(io.BytesIO(pcap(packets)))).all()


def test_a_result_does_not_depend_on_the_number_of_threads(write):
    paths = [write(pcap([tcp(sport=s) for s in range(1, 20 + i)]), f"{i}.pcap") for i in range(5)]
    one = FlowSampler(random_state=0).fit_transform(paths)
    assert (FlowSampler(random_state=0, n_jobs=3).fit_transform(paths) == one).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("public", "fields"),
        ({"macs": "zero"}, r"names \['macs'\]"),
        ({"mac": "erase"}, r"actions \['erase'\]"),
        (5, "fields"),
    ],
)
def test_a_wrong_policy_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        FlowSampler(fields=fields).fit([])


@pytest.mark.parametrize("kept", [81, 65_535])
def test_rows_that_claim_more_bytes_than_they_have_room_for_are_refused(write, kept):
    rows = FlowSampler(fields="raw").flows(write(pcap([udp()]))).rows
    rows.kept_bytes[0, 0] = kept
    with pytest.raises(ValueError, match=rf"kept_bytes holds {kept}, but a packet has room for 80 bytes"):
        apply_fields(rows, policy_actions("portable", training=False), 0)


def test_rows_of_any_bytes_are_rewritten_within_their_packets():
    rng = np.random.default_rng(0)
    links = [1, 101, 113, 192, 276]
    kept_bytes = np.zeros((400, 4), np.uint16)
    rows = FlowRows(
        np.zeros(400, FLOW_DTYPE), np.zeros((400, 160), np.uint8), kept_bytes, kept_bytes.astype(np.int32), "packets"
    )
    rows.records["link_type"] = rng.choice(links, 400)
    rows.X[:] = rng.integers(0, 256, rows.X.shape)
    rows.X.reshape(400, 4, 40)[:, :, :40:5] = rng.choice([0, 6, 8, 17, 0x45, 0x60, 43, 0x86, 0xDD], (400, 4, 8))
    rows.kept_bytes[:] = rng.integers(0, 41, rows.kept_bytes.shape)
    before = rows.X.reshape(400, 4, 40).copy()
    for fields in ("portable", "paper"):
        apply_fields(rows, policy_actions(fields, training=True), 1)
    behind = np.arange(40) >= rows.kept_bytes[:, :, None]
    assert (rows.X.reshape(before.shape) == before)[behind].all()
    assert (rows.X.reshape(before.shape) != before).any()
