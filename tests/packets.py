"""Packets of every kind the sampler knows, and of some it must refuse; by scapy, for tests and for the fuzzer."""

from functools import reduce
from operator import truediv

from captures import udp, udp6
from naive import GENEVE, MPLS, GTPHeader, LongTag, Tag
from scapy.contrib.erspan import ERSPAN_I, ERSPAN_II, ERSPAN_III
from scapy.layers.dot11 import Dot11, Dot11QoS, RadioTap
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, PadN
from scapy.layers.l2 import ARP, GRE, GRE_PPTP, LLC, SNAP, CookedLinux, CookedLinuxV2, Dot1AD, Dot1Q, Dot3, Loopback
from scapy.layers.l2 import Ether as EtherLayer
from scapy.layers.ppi import PPI
from scapy.layers.ppp import HDLC, PPP, PPPoE


def Ether(**fields):
    """Return an Ethernet header with addresses given: scapy asks the network for missing ones."""
    return EtherLayer(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", **fields)


# name -> (link type, packet, first byte of its IP header)
RAW = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=5, dport=53) / b"payload"
RAW6 = IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=5, dport=53) / b"payload"
DOT3 = Dot3(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
ACCESS_POINTS = {"addr1": "02:00:00:00:00:01", "addr2": "02:00:00:00:00:02", "addr3": "02:00:00:00:00:03"}
WIRELESS = Dot11(type=2, subtype=0, FCfield=1, **ACCESS_POINTS)
WIRELESS_QOS = Dot11(type=2, subtype=8, FCfield=2, **ACCESS_POINTS)
WIRELESS_BRIDGE = Dot11(type=2, subtype=0, FCfield=3, addr4="02:00:00:00:00:04", **ACCESS_POINTS)
LINK_LAYERS = {
    "ethernet": (1, Ether() / RAW, 14),
    "vlan": (1, Ether() / Dot1Q(vlan=5) / RAW, 18),
    "qinq": (1, Ether() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / RAW, 22),
    "ethernet ipv6": (1, Ether() / RAW6, 14),
    "raw": (101, RAW, 0),
    "raw ipv6": (101, RAW6, 0),
    "raw bsd": (12, RAW, 0),
    "ipv4": (228, RAW, 0),
    "ipv6": (229, RAW6, 0),
    "null": (0, Loopback(type=2) / RAW, 4),
    "null ipv6": (0, Loopback(type=30) / RAW6, 4),
    "loop": (108, b"\0\0\0\x02" + bytes(RAW), 4),
    "linux cooked": (113, CookedLinux(proto=0x0800) / RAW, 16),
    "linux cooked vlan": (113, CookedLinux(proto=0x8100) / Dot1Q(vlan=5) / RAW, 20),
    "linux cooked ipv6": (113, CookedLinux(proto=0x86DD) / RAW6, 16),
    "linux cooked 2": (276, CookedLinuxV2(proto=0x0800) / RAW, 20),
    "mpls": (1, Ether(type=0x8847) / MPLS(label=5, s=0) / MPLS(label=6, s=1) / RAW, 22),
    "mpls ipv6": (1, Ether(type=0x8848) / MPLS(label=5, s=1) / RAW6, 18),
    "vlan mpls": (1, Ether() / Dot1Q(vlan=5, type=0x8847) / MPLS(label=5, s=1) / RAW, 22),
    "pppoe": (1, Ether(type=0x8864) / PPPoE() / PPP(proto=0x21) / RAW, 22),
    "pppoe ipv6": (1, Ether(type=0x8864) / PPPoE() / PPP(proto=0x57) / RAW6, 22),
    "ppp": (9, PPP(proto=0x21) / RAW, 2),
    "ppp framed": (9, HDLC() / PPP(proto=0x21) / RAW, 4),
    "ppp compressed": (9, b"\x21" + bytes(RAW), 1),
    "ppp ipv6": (9, PPP(proto=0x57) / RAW6, 2),
    "ppp mpls": (9, PPP(proto=0x281) / MPLS(label=5, s=1) / RAW, 6),
    "ppp serial": (50, HDLC() / PPP(proto=0x21) / RAW, 4),
    "ppp over ethernet": (51, PPPoE() / PPP(proto=0x21) / RAW, 8),
    "ppi": (192, PPI(dlt=1, headers=[]) / Ether() / RAW, 22),
    "ppi raw": (192, PPI(dlt=101, headers=[]) / RAW, 8),
    "linux cooked 2 ipv6": (276, CookedLinuxV2(proto=0x86DD) / RAW6, 20),
    "snap": (1, DOT3 / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP() / RAW, 22),
    "snap ipv6": (1, DOT3 / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP() / RAW6, 22),
    "snap vlan": (1, DOT3 / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(code=0x8100) / Dot1Q(vlan=5) / RAW, 26),
    "llc of ip": (1, DOT3 / LLC(dsap=6, ssap=6, ctrl=3) / RAW, 17),
    "linux cooked snap": (113, CookedLinux(proto=4) / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP() / RAW, 24),
    "atm": (100, LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP() / RAW, 8),
    "vn-tag": (1, Ether(type=0x8926) / Tag(type=0x0800) / RAW, 20),
    "vn-tag vlan": (1, Ether(type=0x8926) / Tag(type=0x8100) / Dot1Q(vlan=5) / RAW, 24),
    "e-tag": (1, Ether(type=0x893F) / LongTag(type=0x86DD) / RAW6, 22),
    "metadata": (1, Ether(type=0x8909) / LongTag(type=0x0800) / RAW, 22),
    "redundancy": (1, Ether(type=0x892F) / Tag(type=0x0800) / RAW, 20),
    "mpls alone": (219, MPLS(label=5, s=1) / RAW, 4),
    "wireless": (105, WIRELESS / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP() / RAW, 32),
    "wireless qos": (105, WIRELESS_QOS / Dot11QoS() / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP() / RAW6, 34),
    "wireless bridge": (105, WIRELESS_BRIDGE / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP() / RAW, 38),
    "radiotap": (127, RadioTap(present=0) / WIRELESS / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP() / RAW, 40),
    "ppi wireless": (192, PPI(dlt=105, headers=[]) / WIRELESS / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP() / RAW, 40),
}


EXTENSIONS = {
    "none": None,
    "hop-by-hop": IPv6ExtHdrHopByHop(options=[PadN(optdata=b"12345678")]),
    "destination": IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt(),
    "routing": IPv6ExtHdrRouting(addresses=["fd00::9"]),
    "first fragment": IPv6ExtHdrFragment(offset=0, m=1),
    "all": IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrFragment(offset=0, m=1) / IPv6ExtHdrDestOpt(),
    "forty": IPv6ExtHdrHopByHop() / reduce(truediv, [IPv6ExtHdrDestOpt()] * 40),
}


# name -> (packet, what happens to it)
NOT_SAMPLED = {
    "arp": (Ether() / ARP(), "non_ip"),
    "llc": (Ether(type=100) / b"12345678901234567890", "non_ip"),
    "icmp": (Ether() / IP() / ICMP(), "other_protocol"),
    "second fragment": (Ether() / IP(frag=100, proto=17) / b"12345678", "fragment"),
    "second ipv6 fragment": (udp6(between=IPv6ExtHdrFragment(offset=100)), "fragment"),
    "nothing": (b"", "short"),
    "half an ip header": (bytes(udp())[:30], "short"),
    "no ports": (bytes(udp())[:36], "short"),
    "half an ipv6 header": (bytes(udp6())[:50], "short"),
    "half an extension header": (bytes(udp6(between=IPv6ExtHdrHopByHop()))[:58], "short"),
    "ip header length 4": (Ether() / IP(ihl=1, len=40) / UDP(), "malformed"),
    "ip version 5": (Ether(type=0x0800) / (b"\x55" + bytes(40)), "malformed"),
    "ip total length 10": (Ether() / IP(len=10) / UDP(), "malformed"),
    "5000 vlan tags": (bytes(12) + b"\x81\x00\x00\x01" * 5000 + b"\x08\x00" + bytes(RAW), "malformed"),
    "5000 mpls labels": (bytes(12) + b"\x88\x47" + b"\x00\x00\x10\x40" * 5000 + bytes(RAW), "malformed"),
    "mpls pseudowire": (Ether(type=0x8847) / MPLS(label=5, s=1) / bytes(60), "non_ip"),
    "ppp control": (Ether(type=0x8864) / PPPoE() / PPP(proto=0xC021) / bytes(8), "non_ip"),
    "5000 extension headers": (
        bytes(Ether() / IPv6(nh=60, plen=40_000)) + b"\x3c\x00\x00\x00\x00\x00\x00\x00" * 5000,
        "short",
    ),
    "stp": (DOT3 / LLC(dsap=0x42, ssap=0x42, ctrl=3) / bytes(35), "non_ip"),
    "another organisation's snap": (DOT3 / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0xC, code=0x2000), "non_ip"),
    "half a snap header": (bytes(DOT3) + b"\xaa\xaa\x03\0\0", "short"),
    "half a tag": (bytes(Ether(type=0x8926)) + b"\0\0", "short"),
    "encrypted macsec": (Ether(type=0x88E5) / (b"\x0c\0" + bytes(60)), "non_ip"),
}


# name -> (packet, link type of what the tunnel carries, what it carries)
INNER = IP(src="10.9.0.1", dst="10.9.0.2") / UDP(sport=5, dport=53) / b"payload"
INNER6 = IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=5, dport=53) / b"payload"
OUTER = Ether() / IP(src="10.0.0.1", dst="10.0.0.2")


def OUTER_TO(protocol):
    """Return the outer headers in front of another protocol."""
    return Ether() / IP(src="10.0.0.1", dst="10.0.0.2", proto=protocol)


VXLAN_HEADER = UDP(sport=999, dport=4789) / bytes.fromhex("0800000000000100")
FRAME = Ether() / Dot1Q(vlan=5) / INNER
MPLS_INNER = MPLS(label=5, s=1) / INNER
PPP_INNER = PPP(proto=0x21) / INNER
TUNNELS = {
    "ip in ip": (OUTER / INNER, 101, INNER),
    "6in4": (OUTER / INNER6, 101, INNER6),
    "4in6": (Ether() / IPv6(src="fd00::8", dst="fd00::9") / INNER, 101, INNER),
    "gre": (OUTER / GRE() / INNER, 101, INNER),
    "gre ipv6": (OUTER / GRE() / INNER6, 101, INNER6),
    "gre with all fields": (OUTER / GRE(chksum_present=1, key_present=1, seqnum_present=1) / INNER, 101, INNER),
    "gre ethernet": (OUTER / GRE(proto=0x6558) / bytes(FRAME), 1, FRAME),
    "pptp": (
        OUTER / GRE_PPTP(seqnum_present=1, acknum_present=1) / PPP(proto=0x21) / INNER,
        9,
        PPP(proto=0x21) / INNER,
    ),
    "vxlan": (OUTER / VXLAN_HEADER / bytes(FRAME), 1, FRAME),
    "etherip": (OUTER_TO(97) / (b"\x30\0" + bytes(FRAME)), 1, FRAME),
    "mpls in ip": (OUTER_TO(137) / MPLS_INNER, 219, MPLS_INNER),
    "mpls in udp": (OUTER / UDP(sport=999, dport=6635) / MPLS_INNER, 219, MPLS_INNER),
    "mpls in gre": (OUTER / GRE(proto=0x8847) / bytes(MPLS_INNER), 219, MPLS_INNER),
    "erspan 1": (OUTER / GRE(proto=0x88BE) / ERSPAN_I() / FRAME, 1, FRAME),
    "erspan 2": (OUTER / GRE(proto=0x88BE, seqnum_present=1) / ERSPAN_II() / FRAME, 1, FRAME),
    "erspan 3": (OUTER / GRE(proto=0x22EB, seqnum_present=1) / ERSPAN_III() / FRAME, 1, FRAME),
    "geneve": (OUTER / UDP(sport=999, dport=6081) / GENEVE(proto=0x6558) / bytes(FRAME), 1, FRAME),
    "geneve with options": (
        OUTER / UDP(sport=999, dport=6081) / GENEVE(bytes(GENEVE(proto=0x0800, optionlen=2)) + bytes(8) + bytes(INNER)),
        101,
        INNER,
    ),
    "vxlan gpe": (
        OUTER / UDP(sport=999, dport=4790) / (bytes.fromhex("0c00000200000100") + bytes(INNER6)),
        101,
        INNER6,
    ),
    "gtp": (OUTER / UDP(sport=2152, dport=2152) / GTPHeader(gtp_type=255, teid=7) / INNER, 101, INNER),
    "gtp with extension": (
        OUTER / UDP(sport=2152, dport=2152) / (bytes.fromhex("34ff002f00000007000000850110ff00") + bytes(INNER)),
        101,
        INNER,
    ),
    "gre in ip in ip": (OUTER / IP(src="10.7.0.1", dst="10.7.0.2") / GRE() / INNER, 101, INNER),
}
