"""Slow, obvious twins of the fast code, written for reading: scapy parses, dictionaries collect, loops compute."""

from itertools import pairwise
from typing import ClassVar

import numpy as np
from scapy.config import conf
from scapy.fields import StrFixedLenField, XShortField
from scapy.layers.dot11 import Dot11, Dot11QoS, RadioTap
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import (
    GRE,
    GRE_PPTP,
    LLC,
    SNAP,
    CookedLinux,
    CookedLinuxV2,
    Dot1AD,
    Dot1Q,
    Dot3,
    Ether,
)  # fmt: skip
from scapy.layers.ppi import PPI
from scapy.layers.ppp import HDLC, PPP, PPPoE
from scapy.main import load_contrib
from scapy.packet import Packet, bind_layers
from scapy.utils import RawPcapNgReader, RawPcapReader

from sklearn_docids.capture.headers import SAMPLED, find_transport

load_contrib("mpls")
load_contrib("erspan")
load_contrib("geneve")
load_contrib("gtp")
from scapy.contrib.erspan import ERSPAN_III  # noqa: E402 - needs the lines above
from scapy.contrib.geneve import GENEVE  # noqa: E402
from scapy.contrib.gtp import GTPHeader  # noqa: E402
from scapy.contrib.mpls import MPLS  # noqa: E402

bind_layers(Ether, MPLS, type=0x8848)
bind_layers(PPP, MPLS, proto=0x281)
bind_layers(LLC, IP, dsap=6, ssap=6, ctrl=3)
bind_layers(CookedLinux, LLC, proto=4)


class Tag(Packet):
    """Tags that scapy does not know, in front of an EtherType."""

    fields_desc: ClassVar = [StrFixedLenField("tag", bytes(4), 4), XShortField("type", 0)]


class LongTag(Tag):
    fields_desc: ClassVar = [StrFixedLenField("tag", bytes(6), 6), XShortField("type", 0)]


for ethertype, tag in ((0x8926, Tag), (0x892F, Tag), (0x893F, LongTag), (0x8909, LongTag)):
    bind_layers(Ether, tag, type=ethertype)
for tag in (Tag, LongTag):
    for ethertype, inside in ((0x0800, IP), (0x86DD, IPv6), (0x8100, Dot1Q), (0x8847, MPLS)):
        bind_layers(tag, inside, type=ethertype)
CLASSES = {
    1: Ether, 9: PPP, 50: PPP, 51: PPPoE, 100: LLC, 105: Dot11, 113: CookedLinux, 127: RadioTap, 192: PPI, 219: MPLS,
    228: IP, 229: IPv6, 276: CookedLinuxV2,
}  # fmt: skip
LINK_LAYERS = (
    Ether, Dot3, LLC, SNAP, Dot1Q, Dot1AD, Tag, LongTag, CookedLinux, CookedLinuxV2, MPLS, PPPoE, PPP, HDLC, PPI,
    RadioTap, Dot11, Dot11QoS,
)  # fmt: skip
EXTENSION_HEADERS = (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, IPv6ExtHdrRouting)
# Deeper layers cost time and are not looked at.
conf.layers.filter([*LINK_LAYERS, IP, IPv6, *EXTENSION_HEADERS, IPv6ExtHdrFragment, TCP, UDP])


def read_packets(path):
    """Yield (bytes, time in ns, link type)."""
    reader = RawPcapReader(str(path))
    with reader:
        for raw, meta in reader:
            if isinstance(reader, RawPcapNgReader):
                ticks = (meta.tshigh << 32) | meta.tslow if meta.tshigh is not None else 0
                yield raw, ticks * 10**9 // (meta.tsresol or 1), meta.linktype
            else:
                yield raw, meta.sec * 10**9 + meta.usec * (1 if reader.nano else 1000), reader.linktype


def enter_tunnel(raw, protocol, transport):
    """Return (bytes, link type) of what a packet carries, (None, None) if it is no tunnel."""
    payload = raw[transport:]
    if protocol in (4, 41):
        return payload, 101
    if protocol == 97:
        return payload[2:], 1
    if protocol == 137:
        return payload, 219
    if protocol == 47 and len(payload) >= 4:
        return enter_gre(payload)
    if protocol == 17 and len(payload) >= 8:
        return enter_udp(int.from_bytes(payload[2:4], "big"), payload[8:])
    return None, None


INSIDE = {0x0800: 101, 0x86DD: 101, 0x6558: 1, 0x8847: 219}


def enter_gre(payload):
    gre = GRE(payload)
    if isinstance(gre, GRE_PPTP):
        return bytes(gre.payload), 9
    if gre.version or gre.routing_present:
        return None, None
    inside = gre.original[len(gre.original) - len(gre.payload.original) :]
    if gre.proto == 0x88BE:
        return (inside[8:] if gre.seqnum_present else inside), 1
    if gre.proto == 0x22EB:
        return inside[len(ERSPAN_III()) + (8 if inside[11] & 1 else 0) :], 1
    return (inside, INSIDE[gre.proto]) if gre.proto in INSIDE else (None, None)


def enter_udp(port, data):
    if port == 6635:
        return data, 219
    if port == 4789 and len(data) >= 8 and data[0] & 8:
        return data[8:], 1
    if port == 4790 and len(data) >= 8:
        kind = {1: 101, 2: 101, 3: 1}.get(data[3] if data[0] & 4 else 3)
        return (data[8:], kind) if kind else (None, None)
    if port == 6081 and len(data) >= 8:
        header = GENEVE(data)
        if header.version == 0 and header.proto in INSIDE:
            return data[8 + 4 * header.optionlen :], INSIDE[header.proto]
    if port == 2152 and len(data) >= 8:
        header = GTPHeader(data)
        if header.version == 1 and header.PT == 1 and header.gtp_type == 255:
            header.remove_payload()
            at = 12 if header.E or header.S or header.PN else 8
            following = data[at - 1] if header.E else 0
            while following:
                at += 4 * data[at]
                following = data[at - 1]
            return data[at:], 101
    return None, None


def find_ip(raw, link_type):
    """Return (layer at the IP header or where it should be, EtherType in front of it)."""
    kind = None
    if link_type in CLASSES:
        layer = CLASSES[link_type](raw)
    elif link_type in (0, 108):  # scapy knows the address families of its own system only
        layer = (IP if 2 in (raw[0], raw[3]) else IPv6)(raw[4:])
    elif raw and raw[0] >> 4 in (4, 6):
        layer = (IP if raw[0] >> 4 == 4 else IPv6)(raw)
    else:
        return None, None
    while isinstance(layer, LINK_LAYERS):
        kind = layer.fields.get("proto", layer.fields.get("type", layer.fields.get("code")))
        layer = layer.payload
    return layer, kind


def parse(raw, link_type, innermost=False, tunnels=()):
    """Return (fate, dict of what was found, what duplicates have in common)."""
    layer, kind = find_ip(raw, link_type)
    if not isinstance(layer, IP | IPv6):  # a header that is cut is raw bytes for scapy
        return ("short" if kind in (0x0800, 0x86DD) else "non_ip"), None, raw
    ip, ip_start = layer, len(raw) - len(layer.original)
    if isinstance(ip, IP):
        ip_end = ip_start + ip.len if ip.len else len(raw)
        protocol, transport = ip.proto, ip_start + 4 * ip.ihl
        is_fragment = ip.frag > 0
    else:
        ip_end = ip_start + 40 + ip.plen if ip.plen else len(raw)
        protocol, layer = ip.nh, ip.payload
        is_fragment = False
        while isinstance(layer, (*EXTENSION_HEADERS, IPv6ExtHdrFragment)):
            is_fragment |= isinstance(layer, IPv6ExtHdrFragment) and layer.offset > 0
            protocol, layer = layer.nh, layer.payload
        transport = len(raw) - len(layer.original) if layer else ip_end
    captured = raw[:ip_end]
    identity = (tunnels, captured[ip_start:])
    if is_fragment:
        return "fragment", None, identity
    if innermost:
        inner, inner_type = enter_tunnel(captured, protocol, transport)
        if inner is not None:
            found = parse(inner, inner_type, innermost, (*tunnels, tuple(sorted((ip.src, ip.dst)))))
            cut = len(raw) < ip_end
            if found[0] not in ("non_ip", "malformed") and (found[0] != "short" or cut):
                return found
    if protocol not in (6, 17):
        return "other_protocol", None, identity
    if transport + 4 > len(captured):
        return "short", None, identity
    source = ip.src, int.from_bytes(captured[transport : transport + 2], "big")
    destination = ip.dst, int.from_bytes(captured[transport + 2 : transport + 4], "big")
    header, flags = 8 if protocol == 17 else 20, 0
    if protocol == 6 and transport + 14 <= len(captured):
        header, flags = 4 * max(captured[transport + 12] >> 4, 5), captured[transport + 13]
    found = {
        "source": source,
        "destination": destination,
        "protocol": protocol,
        "flags": flags,
        "ip_bytes": ip_end - ip_start,
        "payload": max(ip_end - transport - header, 0),
        "kept": captured,
        "kept_payload": captured[transport + header :],
        "cut": len(raw) < ip_end,
        "link_type": link_type,
        "tunnels": tunnels,
    }
    return "sampled", found, identity


def port_range(port):
    return (port >= 1024) + (port >= 49152)


def goes_to_client(packet):
    """Whether a packet is the server's: a SYN-ACK, or no SYN and from the port of the lower range."""
    if packet["protocol"] != 6 or packet["source"] == packet["destination"]:
        return False
    if packet["flags"] & 0x02:
        return packet["flags"] & 0x10 > 0
    return port_range(packet["source"][1]) < port_range(packet["destination"][1])


class Flow:
    def __init__(self, packet, time, link_type, begin, reverse):
        self.source, self.destination, self.protocol = packet["source"], packet["destination"], packet["protocol"]
        if reverse:
            self.source, self.destination = self.destination, self.source
        self.time_first = self.time_last = time
        self.link_type = link_type
        self.begin, self.end = begin, "open"
        self.first = []
        self.packets, self.bytes, self.payload, self.flags = [0, 0], [0, 0], [0, 0], [0, 0]

    def add(self, packet, time, n_packets):
        way = 0 if (packet["source"], packet["destination"]) == (self.source, self.destination) else 1
        self.packets[way] += 1
        self.bytes[way] += packet["ip_bytes"]
        self.payload[way] += packet["payload"]
        self.flags[way] |= packet["flags"]
        self.time_last = max(self.time_last, time)
        if len(self.first) < 2 * n_packets:
            self.first.append(packet | {"number": len(self.first) + 1})

    def note_handshake(self, packet, bidirectional):
        """Take the direction of the first SYN or SYN-ACK, even if packets came before it."""
        if not packet["flags"] & 2 or (self.flags[0] | self.flags[1]) & 2:
            return
        if sum(self.packets) < 3:
            self.begin = "handshake"
        client = packet["destination"] if goes_to_client(packet) else packet["source"]
        if bidirectional and self.source != client:
            self.source, self.destination = self.destination, self.source
            for counts in (self.packets, self.bytes, self.payload, self.flags):
                counts.reverse()

    def how_it_ended(self):
        flags = self.flags[0] | self.flags[1]
        if flags & 4 or (flags & 1 and all(f & 1 for f, n in zip(self.flags, self.packets, strict=True) if n)):
            return "closed"
        return self.end

    def packets_of_row(self, n_packets, layout):
        if layout == "packets":
            return self.first[:n_packets]
        return sorted(self.first, key=lambda packet: packet["payload"] == 0)[:n_packets]

    def goes_forward(self, packet):
        return (packet["source"], packet["destination"]) == (self.source, self.destination)

    def described(self, packet):
        numbers = [self.protocol, 1 if self.goes_forward(packet) else 2]
        numbers += min(packet["payload"], 65535).to_bytes(2, "big")
        numbers += [packet["flags"], min(packet["number"], 255), *self.destination[1].to_bytes(2, "big")]
        return bytes(numbers)

    def kept(self, n_packets, n_bytes, layout):
        packets = self.packets_of_row(n_packets, layout)
        if layout == "packets":
            return [packet["kept"][:n_bytes] for packet in packets]
        return [(self.described(packet) + packet["kept_payload"])[:n_bytes] for packet in packets]

    def row(self, n_packets, n_bytes, layout):
        padded = [kept.ljust(n_bytes, b"\0") for kept in self.kept(n_packets, n_bytes, layout)]
        return np.frombuffer(b"".join(padded).ljust(n_packets * n_bytes, b"\0"), np.uint8)

    def kept_bytes(self, n_packets, n_bytes, layout):
        return (list(map(len, self.kept(n_packets, n_bytes, layout))) + [0] * n_packets)[:n_packets]

    def payload_lengths(self, n_packets, layout):
        packets = self.packets_of_row(n_packets, layout)
        lengths = [packet["payload"] * (1 if self.goes_forward(packet) else -1) for packet in packets]
        return (lengths + [0] * n_packets)[:n_packets]

    def truncated(self, n_packets, n_bytes, layout):
        packets = self.packets_of_row(n_packets, layout)
        if layout == "packets":
            return any(packet["cut"] and len(packet["kept"]) < n_bytes for packet in packets)
        return any(len(packet["kept_payload"]) < min(packet["payload"], n_bytes - 8) for packet in packets)


class Clock:
    """Time of the capture: never runs backwards; goes on from the new time after two large steps back in a row."""

    def __init__(self, idle_timeout):
        self.now, self.latest, self.idle_timeout, self.was_behind = 0, None, idle_timeout, False

    def advance(self, time):
        behind = self.latest is not None and time < self.latest - self.idle_timeout
        if self.latest is None or (behind and self.was_behind):
            self.latest = time
        elif time > self.latest:
            self.now += min(time - self.latest, 2 * self.idle_timeout + 1)
            self.latest = time
        self.was_behind = behind


def sample(
    path, n_packets=4, bidirectional=True, idle_timeout=120.0, tcp_restart=True, max_live_flows=10**9,
    tunnels="outermost", duplicate_window=0, duplicate_seconds=None, active_timeout=None,
):  # fmt: skip
    """Return (list of Flow in order of first packet, counts by fate)."""
    flows, known, fates = [], {}, {}
    timeout = 10**30 if idle_timeout is None else round(idle_timeout * 1e9)
    longest = 10**30 if active_timeout is None else round(active_timeout * 1e9)
    apart = 10**30 if duplicate_seconds is None else round(duplicate_seconds * 1e9)
    clock = Clock(timeout)
    before = []
    for raw, time, link_type in read_packets(path):
        fate, packet, identity = parse(raw, link_type, tunnels == "innermost")
        window = before[len(before) - min(duplicate_window, len(before)) :]
        before.append((identity, time))
        if any(other == identity and abs(time - then) <= apart for other, then in window):
            fates["duplicate"] = fates.get("duplicate", 0) + 1
            continue
        clock.advance(time)
        for key, flow in list(known.items()):
            if clock.now - flow.last_active > timeout and flow.end == "open":
                flow.end = "idle"
            if clock.now - flow.last_active > 2 * timeout:
                del known[key]
        fates[fate] = fates.get(fate, 0) + 1
        if fate != "sampled":
            continue
        link_type = packet["link_type"]
        ends = packet["source"], packet["destination"]
        key = (tuple(sorted(ends)) if bidirectional else ends, packet["protocol"], link_type, packet["tunnels"])
        flow = known.pop(key, None)
        is_syn = packet["flags"] & 0x12 == 0x02
        begin = "first" if packet["protocol"] == 17 else "handshake" if packet["flags"] & 2 else "running"
        reverse = bidirectional and goes_to_client(packet)
        if flow and flow.end == "open" and tcp_restart and is_syn and (flow.flags[0] | flow.flags[1]) & 0x05:
            flow.end, flow = "closed", None
        elif flow and (flow.end == "idle" or time - flow.time_first > longest):
            flow.end = "active" if flow.end == "open" else flow.end
            if not packet["flags"] & 2:
                begin, reverse = "timeout", packet["source"] != flow.source or packet["destination"] != flow.destination
            flow = None
        elif flow:
            flow.note_handshake(packet, bidirectional)
        if flow is None:
            flow = Flow(packet, time, link_type, begin, reverse)
            flows.append(flow)
            if len(known) >= max_live_flows:
                # The longest idle one; among equals, the one that began first.
                victim = known.pop(min(known, key=lambda key: (known[key].last_active, flows.index(known[key]))))
                victim.end = "evicted" if victim.end == "open" else victim.end
        flow.last_active = clock.now
        flow.add(packet, time, n_packets)
        known[key] = flow
    return flows, fates


def mix(h):
    """Return the finaliser of SplitMix64."""
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) % 2**64
    return h ^ (h >> 31)


def random_bytes(old, field, seed):
    """Return what a field becomes: a hash of seed, field and old value."""
    h = mix((seed + (POLICY_FIELDS.index(field) + 1) * 0x9E3779B97F4A7C15) % 2**64)
    for byte in old:
        h = mix(h ^ byte)
    new = []
    for _ in old:
        h = mix((h + 0x9E3779B97F4A7C15) % 2**64)
        new.append(h % 256)
    return bytes(new)


def words(data):
    """Return the sum of the 16-bit words of bytes, an odd end padded with zero."""
    data = data + bytes(len(data) % 2)
    return sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))


def ones_complement(total):
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


POLICY_FIELDS = ("mac", "ip", "ports", "ip_id", "ttl", "checksums", "tcp_seq", "tcp_window", "tcp_options",
                 "tcp_timestamps")  # fmt: skip


class Rewritten:
    """A packet, as far as a row holds it, whose fields are changed one after the other."""

    def __init__(self, packet, actions, seed):
        self.packet, self.actions, self.seed = bytearray(packet), actions, seed

    def change(self, first, last, field):
        last = min(last, len(self.packet))
        action = self.actions.get(field, "keep")
        if action == "keep" or first >= last:
            return
        old = bytes(self.packet[first:last])
        self.packet[first:last] = bytes(len(old)) if action == "zero" else random_bytes(old, field, self.seed)

    def change_link(self, link_type):
        start = 0
        if link_type == 192 and len(self.packet) >= 8:
            start, link_type = (int.from_bytes(self.packet[a:b], "little") for a, b in ((2, 4), (4, 8)))
            if start < 8:
                return
        if link_type == 127 and len(self.packet) >= 8:
            start, link_type = int.from_bytes(self.packet[2:4], "little"), 105
            if start < 8:
                return
        places = {1: [(0, 6), (6, 12)], 105: [(4, 10), (10, 16), (16, 22)], 113: [(6, 14)], 276: [(12, 20)]}
        if link_type == 105 and len(self.packet) >= start + 24 and self.packet[start + 1] & 3 == 3:
            places[105].append((24, 30))
        for first, last in places.get(link_type, []):
            self.change(start + first, start + last, "mac")

    def change_ipv4(self, ip, transport):
        for first, last, field in ((4, 6, "ip_id"), (8, 9, "ttl"), (12, 16, "ip"), (16, 20, "ip")):
            self.change(ip + first, ip + last, field)
        self.change(ip + 20, ip + 4 * (self.packet[ip] & 15) if ip < len(self.packet) else ip, "ip")

    def change_ipv6(self, ip, transport):
        if ip + 4 > len(self.packet):
            return
        traffic_class = self.packet[ip + 1] & 0xF0
        self.change(ip + 1, ip + 4, "ip_id")
        self.packet[ip + 1] = self.packet[ip + 1] & 0x0F | traffic_class
        for first, last, field in ((7, 8, "ttl"), (8, 24, "ip"), (24, 40, "ip")):
            self.change(ip + first, ip + last, field)
        at, stop = ip + 40, min(transport, len(self.packet))
        header = self.packet[ip + 6] if at <= stop else None
        while at + 2 <= stop:
            following, length = self.packet[at], self.packet[at + 1]
            size = 8 if header == 44 else 4 * (length + 2) if header == 51 else 8 * (length + 1)
            if header == 43:
                self.change(at + 8, min(at + size, stop), "ip")
            header, at = following, at + size

    def change_tcp(self, at):
        for first, last, field in ((4, 8, "tcp_seq"), (8, 12, "tcp_seq"), (14, 16, "tcp_window")):
            self.change(at + first, at + last, field)
        end = self.transport_end(at, 6)
        first = values = min(at + 20, end)
        while values < end and self.packet[values] != 8:
            kind = self.packet[values]
            if kind == 0 or (kind > 1 and (values + 1 >= end or self.packet[values + 1] < 2)):
                values = end
            else:
                values += 1 if kind == 1 else self.packet[values + 1]
        values = end if values + 1 >= end or self.packet[values + 1] < 2 else min(values + 2, end)
        kept = self.actions.get("tcp_timestamps", "keep") == "keep"
        middle, last = min(values + 4, end), min(values + 8, end)
        for begin, stop, field in ((first, values, 0), (values, middle, 1), (middle, last, 1), (last, end, 0)):
            self.change(begin, stop, "tcp_timestamps" if field and not kept else "tcp_options")

    def transport_end(self, at, protocol):
        if protocol == 17:
            return min(at + 8, len(self.packet))
        if at + 13 > len(self.packet):
            return len(self.packet)
        return min(at + max(20, self.packet[at + 12] // 16 * 4), len(self.packet))

    def patch(self, at, before, after, pseudo_before=0, pseudo_after=0):
        if self.actions.get("checksums", "keep") != "keep":
            self.change(at, at + 2, "checksums")
        elif at + 2 <= len(self.packet) and before != after:
            old = int.from_bytes(self.packet[at : at + 2], "big")
            new = 0xFFFF - (0xFFFF - old + after - before) % 0xFFFF
            if old == ones_complement(pseudo_before):
                new = ones_complement(pseudo_after)
            if old:
                self.packet[at : at + 2] = new.to_bytes(2, "big")


def rewritten(packet, link_type, actions, seed=0):
    """Return the bytes that a row holds of a packet with its header fields zeroed or randomised."""
    changed = Rewritten(packet, actions, seed)
    changed.change_link(link_type)
    data = np.frombuffer(bytes(packet) + bytes(8), np.uint8)[: len(packet)]
    fate, version, ip, protocol, transport, end = find_transport(data, 0, len(data), link_type)
    if not version:
        return bytes(changed.packet)
    if fate != SAMPLED:
        protocol, transport, end = 0, len(data), len(data)
    addresses = slice(ip + 12, ip + 20) if version == 4 else slice(ip + 8, ip + 40)

    def sums():
        end_of_header = ip + 4 * (data[ip] & 15) if ip < len(data) else ip
        header = words(changed.packet[ip : min(end_of_header, len(data))]) if version == 4 else 0
        pseudo = words(changed.packet[addresses]) + protocol + end - transport
        return header, pseudo, pseudo + words(changed.packet[transport : changed.transport_end(transport, protocol)])

    before = sums()
    (changed.change_ipv4 if version == 4 else changed.change_ipv6)(ip, transport)
    if transport < len(data):
        changed.change(transport, transport + 2, "ports")
        changed.change(transport + 2, transport + 4, "ports")
        if protocol == 6:
            changed.change_tcp(transport)
    after = sums()
    if version == 4:
        changed.patch(ip + 10, before[0], after[0])
    if transport < len(data):
        changed.patch(transport + (16 if protocol == 6 else 6), before[2], after[2], before[1], after[1])
    return bytes(changed.packet)


def with_policy(flows, actions, seed=0):
    """Return the rows of a raw flow table with header fields zeroed or randomised."""
    X = flows.X.copy()
    n_bytes = X.shape[1] // flows.kept_bytes.shape[1]
    for row, kept, link_type, number in zip(X, flows.kept_bytes, flows.link_type, range(len(X)), strict=True):
        flow_seed = mix((seed + number * 0xD1342543DE82EF95) % 2**64)
        for packet, length in enumerate(kept):
            place = slice(packet * n_bytes, packet * n_bytes + int(length))
            row[place] = np.frombuffer(rewritten(row[place].tobytes(), int(link_type), actions, flow_seed), np.uint8)
    return X


def compactness(h):
    """Leave-one-out compactness of float64 rows (Perera and Patel, 2019, section III-C)."""
    n, k = h.shape
    total = 0.0
    for i in range(n):
        others = [h[j] for j in range(n) if j != i]
        mean = sum(others) / (n - 1)
        total += float(((h[i] - mean) ** 2).sum())
    return total / (n * k)


def naive_groups(flows, abnormality, level, window, n_highest, combine="sum"):
    """Return (window, source, destination, port, flows, channels, score) of each channel or host, sorted."""
    members = {}
    for row in range(len(flows)):
        key = int(flows.time_first[row]) // round(window * 1e9), str(flows.src_ip[row])
        key += (str(flows.dst_ip[row]), int(flows.dst_port[row])) if level == "channel" else ("", 0)
        members.setdefault(key, []).append(row)
    described = []
    for key, rows in members.items():
        by_channel = {}
        for row in rows:
            channel = flows.dst_ip[row], flows.dst_port[row], flows.protocol[row]
            by_channel.setdefault(channel, []).append(abnormality[row])
        if combine == "most_abnormal":
            score = -max(abnormality[rows])
        elif level == "channel":
            score = -sum(sorted(abnormality[rows], reverse=True)[:n_highest])
        else:
            score = -sum(max(values) for values in by_channel.values())
        described.append((*key, len(rows), len(by_channel), round(float(score), 9)))
    return sorted(described)


def naive_place(normal, score):
    """Return how many normal scores are as low as a score and itself, interpolated; below all, what is left of 1."""
    as_low = [value for value in normal if value <= score]
    higher = [value for value in normal if value > score]
    if not as_low:
        spread = max(normal) - min(normal)
        return spread / (spread + min(normal) - score)
    if not higher:
        return len(normal) + 1
    share = (score - max(as_low)) / (min(higher) - max(as_low))
    return len(as_low) + 1 + share * higher.count(min(higher))


def naive_evicted(flows, abnormality, level, n_highest, max_channels, combine="sum"):
    """Return (source, flows, score) of the groups of one window that must go as the flows come, in their order."""
    members, evicted = {}, []

    def channels(rows):
        return {(flows.dst_ip[row], flows.dst_port[row], flows.protocol[row]) for row in rows}

    def total(rows):
        if combine == "most_abnormal":
            return max(abnormality[rows])
        if level == "channel":
            return sum(sorted(abnormality[rows], reverse=True)[:n_highest])
        return sum(max(abnormality[row] for row in rows if channels([row]) == {channel}) for channel in channels(rows))

    def n_held():
        return sum(len(channels(rows)) for rows in members.values())

    for row in range(len(flows)):
        key = (flows.src_ip[row], *(channels([row]) if level == "channel" else ()))
        members.setdefault(key, []).append(row)
        if n_held() <= max_channels:
            continue
        room = max_channels - max_channels // 10
        held = {key[0]: 0 for key in members}
        for key, rows in members.items():
            held[key[0]] += len(channels(rows))
        largest = max(held, key=held.get)
        candidates = {key for key in members if key[0] == largest or held[largest] <= max_channels / 10}
        while n_held() > room:
            key = min(candidates, key=lambda key: (round(total(members[key]), 9), members[key][-1]))
            candidates.remove(key)
            rows = members.pop(key)
            evicted.append((key[0], len(rows), -round(float(total(rows)), 9)))
    return evicted


class Remembered:
    """Values by key, in order of their last use: when there are too many, the first half goes."""

    def __init__(self, max_keys):
        self.max_keys, self.values, self.n_evicted = max_keys, {}, 0

    def use(self, key, make):
        if key not in self.values and len(self.values) == self.max_keys:
            for old in list(self.values)[: (self.max_keys + 1) // 2]:
                del self.values[old]
                self.n_evicted += 1
        self.values[key] = self.values.pop(key) if key in self.values else make()
        return self.values[key]


class Events:
    """Events as [time, amount], by a clock that never runs backwards."""

    def __init__(self):
        self.now, self.all, self.marked, self.intervals, self.destinations, self.ports = None, [], [], [], [], []

    def advance(self, time):
        before, self.now = self.now, time if self.now is None else max(time, self.now)
        if before is not None:
            self.intervals.append([self.now, (self.now - before) * 1e-9])

    def weights(self, events, half_life):
        return [2.0 ** (-(self.now - then) * 1e-9 / half_life) for then, _ in events]

    def damped(self, events, half_life):
        return sum(w * amount for w, (_, amount) in zip(self.weights(events, half_life), events, strict=True))

    def meet(self, known, table, key):
        """Note the time of a destination or port; one that was forgotten, or met before the source was, is new."""
        held = table.use(key, dict)
        if held.get("of") is not self:
            held["of"], held["event"] = self, [self.now, 1.0]
            known.append(held["event"])
        held["event"][0] = self.now


def damped_counts(keys, times, amounts, half_lives, max_keys):
    """Return (sums over all events of a key up to each one, keys evicted)."""
    table, sums = Remembered(max_keys), []
    for key, time, amount in zip(keys.tolist(), times.tolist(), amounts.tolist(), strict=True):
        events = table.use(key, Events)
        events.advance(time)
        events.all.append([time if (events.now - time) * 1e-9 <= 600 else events.now, amount])
        sums.append([max(amount, events.damped(events.all, half_life)) for half_life in half_lives])
    return np.array(sums).reshape(-1, len(half_lives)), table.n_evicted


def flow_context(records, max_keys):
    """Return (dict of what the past says about each flow, keys evicted)."""
    sources, channels, destinations, ports = tables = [Remembered(max_keys) for _ in range(4)]
    rows = [{} for _ in records]
    for row, flow in sorted(enumerate(records), key=lambda each: each[1]["time_first"]):
        said = rows[row]
        name = (flow["ip_version"], flow["src_high"], flow["src_low"])
        other = (flow["dst_high"], flow["dst_low"])
        resets = flow["tcp_flags_forward"] & 4 > 0, flow["tcp_flags_backward"] & 4 > 0
        source = sources.use(name, Events)
        channel = channels.use((name, other, flow["dst_port"], flow["protocol"]), Events)
        for events in (source, channel):
            events.advance(int(flow["time_first"]))
            events.all.append([events.now, 1.0])
        source.meet(source.destinations, destinations, (name, other))
        source.meet(source.ports, ports, (name, flow["dst_port"]))
        for s in (1, 10, 60, 600):
            said[f"channel_flows_{s}"] = channel.damped(channel.all, s)
            said[f"channel_resets_{s}"] = channel.damped(channel.marked, s)
            said[f"source_flows_{s}"] = source.damped(source.all, s)
            said[f"source_failed_{s}"] = source.damped(source.marked, s)
        for s in (60, 600):
            said[f"source_destinations_{s}"] = source.damped(source.destinations, s)
            said[f"source_ports_{s}"] = source.damped(source.ports, s)
        said["interval_mean"] = said["interval_spread"] = 0.0
        if channel.intervals:
            lengths, weights = [x for _, x in channel.intervals], channel.weights(channel.intervals, 600)
            said["interval_mean"] = mean = np.average(lengths, weights=weights)
            said["interval_spread"] = np.average((np.array(lengths) - mean) ** 2, weights=weights) ** 0.5
        source.marked.append([source.now, float(flow["payload_backward"] == 0 or any(resets))])
        channel.marked.append([channel.now, float(resets[1])])
    return rows, sum(table.n_evicted for table in tables)


def naive_incidents(flows, scores, threshold, level, window):
    """Return the rows of the flagged flows of each incident, in the order of time."""
    times = flows.time_first.tolist()
    channels = list(zip(flows.src_ip, flows.dst_ip, flows.dst_port, flows.protocol, strict=True))
    open_incidents, incidents = {}, []
    for row in sorted(np.flatnonzero(scores < threshold).tolist(), key=lambda row: (times[row], row)):
        of_day = times[row] // (24 * 3600 * 10**9), channels[row][: 4 if level == "channel" else 1]
        rows = open_incidents.get(of_day)
        if rows is None or times[row] - times[rows[-1]] > round(window * 1e9):
            rows = open_incidents[of_day] = []
            incidents.append(rows)
        rows.append(row)
    return incidents


def naive_incident_threshold(flows, scores, budget, level, window):
    """Return the last score, going up, before the first one with which there are too many incidents."""
    candidates = sorted(set(scores.tolist()))
    for lower, higher in pairwise(candidates):
        if len(naive_incidents(flows, scores, higher, level, window)) > budget:
            return lower
    return candidates[-1]
