"""The table of docs/evasion.md: what a sender can hide from the rows, and how it is counted."""

import io
from pathlib import Path

import pytest
from captures import pcap
from packets import DOT3, Ether
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.ipsec import AH
from scapy.layers.l2 import GRE, LLC, SNAP, Dot1Q

from sklearn_docids import FlowSampler
from sklearn_docids.capture.headers import PACKET_FATES

PAGE = Path(__file__).parents[1] / "docs" / "evasion.md"
MARK = b"MARKED PAYLOAD"
ENDS = {"src": "10.0.0.1", "dst": "10.0.0.2"}


def ip(**fields):
    return Ether() / IP(**ENDS, **fields)


def client(flags, payload=b"", **fields):
    return ip(**fields) / TCP(sport=5000, dport=80, flags=flags) / payload


SERVER = Ether() / IP(src="10.0.0.2", dst="10.0.0.1") / TCP(sport=80, dport=5000, flags="SA")
HANDSHAKE = [client("S"), SERVER, client("A")]
DATA = client("PA", MARK)
DATAGRAM = IP(**ENDS) / UDP(sport=9, dport=53) / MARK
DECOY = client("PA", b"GET / HTTP/1.1\r\n")


def vxlan(frame, port=4789):
    header = bytes.fromhex("0800000000000100")
    return Ether() / IP(src="10.9.9.9", dst="10.9.9.8") / UDP(sport=1, dport=port) / (header + bytes(frame))


def fragments():
    whole = bytes(TCP(sport=5000, dport=80, flags="PA") / MARK)
    parts = [(at // 8, whole[at : at + 8]) for at in range(0, len(whole), 8)]
    return [ip(frag=at, flags="MF" if at < len(parts) - 1 else 0, proto=6) / part for at, part in parts]


def tags(n):
    packet = Ether(type=0x8100)
    for i in range(n):
        packet /= Dot1Q(vlan=i, type=0x8100 if i < n - 1 else 0x0800)
    return packet / DATAGRAM


def tunnels(n):
    packet = Ether()
    for i in range(n):
        packet /= IP(src=f"10.1.0.{i}", dst="10.1.1.1")
    return packet / DATAGRAM


def extension_headers(n):
    packet = Ether() / IPv6(src="fd00::1", dst="fd00::2")
    for _ in range(n):
        packet /= IPv6ExtHdrDestOpt()
    return packet / UDP(sport=9, dport=53) / MARK


INNERMOST = {"tunnels": "innermost"}
DECOYS = [vxlan(packet) for packet in (HANDSHAKE[0], DECOY, DECOY, DECOY)]
SYNS = [client("S", ttl=64 - i) for i in range(4)]
WAYS = {
    "plain": ([*HANDSHAKE, DATA], {}),
    "three decoy packets in front": ([HANDSHAKE[0], DECOY, DECOY, DECOY, DATA], {}),
    "four SYN retransmissions": ([HANDSHAKE[0]] * 4 + [SERVER, DATA], {}),
    "four SYN retransmissions, duplicates dropped": ([HANDSHAKE[0]] * 4 + [SERVER, DATA], {"duplicate_window": 3}),
    "four SYN retransmissions with other TTLs, duplicates dropped": ([*SYNS, SERVER, DATA], {"duplicate_window": 3}),
    "in the fifth packet of a connection": ([*HANDSHAKE, DECOY, DATA], {}),
    "behind byte 80 of a packet": ([*HANDSHAKE, client("PA", b"x" * 40 + MARK)], {}),
    "in IPv4 fragments of 8 bytes": ([*HANDSHAKE, *fragments()], {}),
    "behind 40 IPv6 extension headers, n_bytes=400": ([extension_headers(40)], {"n_bytes": 400}),
    "behind an IPv4 authentication header": ([ip(proto=51) / AH(nh=17) / DATAGRAM.payload], {}),
    "in GRE": ([ip(proto=47) / GRE() / DATAGRAM], {}),
    "in GRE, innermost": ([ip(proto=47) / GRE() / DATAGRAM], INNERMOST),
    "in VXLAN": ([vxlan(Ether() / DATAGRAM)], {"n_bytes": 80}),
    "in VXLAN, innermost": ([vxlan(Ether() / DATAGRAM)], INNERMOST),
    "in VXLAN on port 9999, innermost": ([vxlan(Ether() / DATAGRAM, 9999)], INNERMOST),
    "decoys of a third host in VXLAN, innermost": ([*DECOYS, *HANDSHAKE, DATA], INNERMOST),
    "decoys of a third host in VXLAN, innermost, tunnel_endpoints=False": (
        [*DECOYS, *HANDSHAKE, DATA],
        INNERMOST | {"tunnel_endpoints": False},
    ),
    "in 17 tunnels one in another, innermost": ([tunnels(18)], INNERMOST),
    "in ICMP": ([ip() / ICMP() / MARK], {}),
    "in SCTP": ([ip(proto=132) / (bytes(12) + MARK)], {}),
    "in an IEEE 802.3 frame with LLC and SNAP": ([DOT3 / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP() / DATAGRAM], {}),
    "behind VN-tag and VLAN tags": ([bytes(Ether(type=0x8926)) + bytes(4) + bytes(tags(2))[12:]], {}),
    "behind 33 VLAN tags": ([tags(33)], {"n_bytes": 400}),
    "in an EtherType nobody knows": ([Ether(type=0x1234) / MARK], {}),
    "a tail without its handshake": ([DATA], {}),
    "in packets of wrong times, which end the flow": ([*HANDSHAKE, DECOY, DATA], {"idle_timeout": 0.5}),
}


def table():
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")][2:]
    return {
        cells[0].strip(): [cell.strip() for cell in cells[1:3]] for cells in (line[1:].split("|") for line in lines)
    }


def test_the_page_has_all_ways_that_are_tested():
    assert list(table()) == list(WAYS)


@pytest.mark.parametrize(("packets", "parameters"), WAYS.values(), ids=WAYS)
def test_the_page_says_what_is_in_a_row_and_how_it_is_counted(packets, parameters, request):
    flows = FlowSampler(fields="raw", **parameters).flows(io.BytesIO(pcap(packets)))
    counters = flows.counters[0]
    in_row, fates = table()[request.node.callspec.id]
    assert ("yes" if any(MARK in row.tobytes() for row in flows.X) else "no") == in_row
    assert ", ".join(fate for fate in PACKET_FATES if counters[fate]) == ", ".join(
        fate for fate in PACKET_FATES if fate in fates.split(", ")
    )
    assert sum(counters[fate] for fate in PACKET_FATES) == counters["packets"] == len(packets)
