"""Captures built in code: packets by scapy, containers by hand, so that each byte of a test is in the test."""

import struct

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether


def pcap(packets, *, link_type=1, times=None, order="<", magic=0xA1B2C3D4, pad=b"", captured=None):
    """Return a classic pcap of packets (bytes or scapy), one second apart by default."""
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, link_type)]
    for i, packet in enumerate(packets):
        data = bytes(packet)
        time = times[i] if times is not None else float(i)
        ticks = 10**9 if magic == 0xA1B23C4D else 10**6
        seconds, fraction = divmod(round(time * ticks), ticks)
        kept = data if captured is None else data[: captured[i]]
        parts.append(struct.pack(order + "IIII", seconds, fraction, len(kept), len(data)) + pad + kept)
    return b"".join(parts)


def block(kind, body, order="<"):
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def section(order="<"):
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link_type=1, order="<", options=b"", snap_length=0):
    return block(1, struct.pack(order + "HHI", link_type, 0, snap_length) + options, order)


def option(code, value, order="<"):
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def enhanced(packet, ticks=0, number=0, order="<"):
    data = bytes(packet)
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
    return block(6, head + data, order)


def simple(packet, order="<"):
    data = bytes(packet)
    return block(3, struct.pack(order + "I", len(data)) + data, order)


def old_packet(packet, ticks=0, number=0, order="<"):
    data = bytes(packet)
    head = struct.pack(order + "HHIIII", number, 0, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
    return block(2, head + data, order)


def tcp(sport=1000, dport=80, flags="S", payload=b"", src="10.0.0.1", dst="10.0.0.2", link=True, **fields):
    packet = IP(src=src, dst=dst) / TCP(sport=sport, dport=dport, flags=flags, **fields) / payload
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / packet if link else packet


def udp(sport=1000, dport=53, payload=b"", src="10.0.0.1", dst="10.0.0.2", link=True):
    packet = IP(src=src, dst=dst) / UDP(sport=sport, dport=dport) / payload
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / packet if link else packet


def udp6(sport=1000, dport=53, payload=b"", src="fd00::1", dst="fd00::2", between=None):
    packet = IPv6(src=src, dst=dst)
    if between is not None:
        packet /= between
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / packet / UDP(sport=sport, dport=dport) / payload
