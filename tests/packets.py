"""Packets of every kind the sampler knows, and of some it must refuse; by scapy, for tests and for the fuzzer."""

from captures import udp, udp6
from naive import MPLS
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, PadN
from scapy.layers.l2 import ARP, GRE, GRE_PPTP, CookedLinux, CookedLinuxV2, Dot1AD, Dot1Q, Loopback
from scapy.layers.l2 import Ether as EtherLayer
from scapy.layers.ppi import PPI
from scapy.layers.ppp import HDLC, PPP, PPPoE


def Ether(**fields):
    """Return an Ethernet header with addresses given: scapy asks the network for missing ones."""
    return EtherLayer(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", **fields)


# name -> (link type, packet, first byte of its IP header)
RAW = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=5, dport=53) / b"payload"
RAW6 = IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=5, dport=53) / b"payload"
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
}


EXTENSIONS = {
    "none": None,
    "hop-by-hop": IPv6ExtHdrHopByHop(options=[PadN(optdata=b"12345678")]),
    "destination": IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt(),
    "routing": IPv6ExtHdrRouting(addresses=["fd00::9"]),
    "first fragment": IPv6ExtHdrFragment(offset=0, m=1),
    "all": IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrFragment(offset=0, m=1) / IPv6ExtHdrDestOpt(),
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
        "malformed",
    ),
}


# name -> (packet, link type of what the tunnel carries, what it carries)
INNER = IP(src="10.9.0.1", dst="10.9.0.2") / UDP(sport=5, dport=53) / b"payload"
INNER6 = IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=5, dport=53) / b"payload"
OUTER = Ether() / IP(src="10.0.0.1", dst="10.0.0.2")
VXLAN_HEADER = UDP(sport=999, dport=4789) / bytes.fromhex("0800000000000100")
FRAME = Ether() / Dot1Q(vlan=5) / INNER
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
    "gre in ip in ip": (OUTER / IP(src="10.7.0.1", dst="10.7.0.2") / GRE() / INNER, 101, INNER),
}
