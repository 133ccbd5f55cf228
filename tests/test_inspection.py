"""Names of header fields at every encapsulation, and the bytes that matter."""

import numpy as np
import pytest
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import CookedLinux, Dot1AD, Dot1Q, Ether
from scapy.layers.ppp import PPP, PPPoE
from scapy.packet import Raw

from sklearn_docids import AutoencoderDetector, DOCIDSDetector, FlowSampler
from sklearn_docids.inspection import byte_reasons, field_names

# What the header of a TCP packet begins with.
FROM_PORTS = ["source port"] * 2 + ["destination port"] * 2 + ["TCP sequence number"] * 4
MAC = "02:00:00:00:00:01"
ETHER = Ether(src=MAC, dst=MAC)
SEGMENT = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=5, dport=80, options=[("NOP", None)] * 4) / Raw(b"hello")


def names_of(packet, link_type=1):
    return field_names(np.frombuffer(bytes(packet), np.uint8), link_type)


@pytest.mark.parametrize(
    ("link", "link_type", "n_link", "last"),
    [
        (Ether(src=MAC, dst=MAC, type=0x0800), 1, 14, "Ethernet type"),
        (ETHER / Dot1Q(type=0x0800), 1, 18, "tags and labels"),
        (ETHER / Dot1AD() / Dot1Q(type=0x0800), 1, 22, "tags and labels"),
        (Ether(src=MAC, dst=MAC, type=0x9100) / Raw(b"\0\7\x08\0"), 1, 18, "tags and labels"),
        (Ether(src=MAC, dst=MAC, type=0x8847) / MPLS(label=4 << 16, s=1), 1, 18, "tags and labels"),
        (ETHER / PPPoE() / PPP(), 1, 22, "tags and labels"),
        (CookedLinux(proto=0x0800), 113, 16, "link header"),
        (Raw(b""), 101, 0, None),
        (Raw(b""), 12, 0, None),
        (Raw(b""), 228, 0, None),
    ],
)
def test_fields_begin_where_the_headers_do(link, link_type, n_link, last):
    names = names_of(bytes(link) + bytes(SEGMENT), link_type)
    if last is not None:
        assert names[n_link - 1] == last
    assert names[n_link] == "IP version"
    assert names[n_link + 8] == "IP TTL"
    assert names[n_link + 12 : n_link + 20] == ["IP source"] * 4 + ["IP destination"] * 4
    assert names[n_link + 20 : n_link + 28] == FROM_PORTS
    assert names[n_link + 40 : n_link + 45] == ["TCP options"] * 4 + ["payload"]
    assert len(names) == n_link + 49


def test_addresses_of_ethernet_have_names():
    assert names_of(ETHER / SEGMENT)[:14] == ["MAC destination"] * 6 + ["MAC source"] * 6 + ["Ethernet type"] * 2


def test_extension_headers_and_options_stand_before_the_ports():
    names = names_of(ETHER / IPv6() / IPv6ExtHdrDestOpt() / UDP() / Raw(b"x"))
    assert names[14 + 7] == "IP hop limit"
    assert names[14 + 40 : 14 + 48] == ["IP options"] * 8
    assert names[14 + 48 : 14 + 52] == FROM_PORTS[:4]
    assert names[-2:] == ["UDP checksum", "payload"]
    assert names_of(ETHER / IP(options=b"\1\1\1\1") / UDP())[14 + 20] == "IP options"


def test_what_is_cut_off_has_no_name_and_what_is_no_packet_says_so():
    assert names_of(bytes(ETHER / SEGMENT)[:40])[-1] == "TCP sequence number"
    assert field_names(np.zeros(5, np.uint8)) == ["no packet"] * 5
    assert names_of(b"\1" * 60) == ["unknown"] * 60
    assert names_of(bytes(SEGMENT), 9999) == ["unknown"] * 49


def test_fields_of_payload_are_those_of_its_description():
    names = field_names([6, 1, 0, 3, 24, 4, 0, 80, *b"GET"], layout="payload")
    assert names[:6] == ["protocol", "direction", "payload length", "payload length", "TCP flags", "packet number"]
    assert names[6:] == ["service port"] * 2 + ["payload byte 0", "payload byte 1", "payload byte 2"]
    assert field_names(np.zeros(9, np.uint8), layout="payload") == ["no packet"] * 9
    assert field_names([6, 1], layout="payload") == ["protocol", "direction"]
    with pytest.raises(ValueError, match=r"layout='other' is none; choose from \['packets', 'payload'\]"):
        field_names([6, 1], layout="other")


def test_reasons_know_the_layout_of_the_detectors_sampler():
    X = np.tile([6, 1, 0, 3, 24, 4, 0, 80, *b"GET", 0], (30, 2)).astype(np.uint8)
    X[:, 11] = range(30)
    detector = AutoencoderDetector(max_epochs=60, random_state=0).fit(X)
    strange = X[:1].copy()
    strange[0, 21] = 255

    def field():
        return byte_reasons(detector, strange, n_listed=1, n_packets=2)[0][0].field

    assert field() == "unknown"
    assert byte_reasons(detector, strange, n_listed=1, n_packets=2, layout="payload")[0][0].field == "payload byte 1"
    detector.sampler_ = FlowSampler(2, 12, layout="payload")
    assert field() == "payload byte 1"


@pytest.fixture(scope="module")
def flows():
    X = np.tile(np.frombuffer(bytes(ETHER / SEGMENT), np.uint8), (30, 1))
    X[:, 38:42] = np.random.default_rng(0).integers(0, 256, (30, 4))
    return X


def test_reasons_name_byte_value_and_the_nearest_normal_flow(flows):
    detector = DOCIDSDetector(lambda_descriptiveness=0, max_epochs=20, random_state=0).fit(flows)
    strange = flows[:2].copy()
    strange[1, 22] = 7
    first, second = byte_reasons(detector, strange, n_listed=63, n_packets=1)
    assert len(first) <= len(second) <= 63
    (ttl,) = [reason for reason in second if reason.byte == 22]
    assert (ttl.packet, ttl.field, ttl.value, ttl.nearest_value) == (0, "IP TTL", 7, 64)
    sizes = [abs(reason.attribution) for reason in second]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0


def test_a_frame_with_names_is_taken_as_it_is(flows):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(flows, columns=[f"byte {number}" for number in range(flows.shape[1])])
    # Warnings of scikit-learn about lost names are errors here.
    detector = AutoencoderDetector(max_epochs=1).fit(frame)
    assert byte_reasons(detector, frame[:1], n_packets=1)[0][0].nearest_value is None


@pytest.mark.parametrize("n_listed", [0, -1, 2.5])
def test_an_unusable_number_of_bytes_is_refused(flows, n_listed):
    detector = AutoencoderDetector(max_epochs=1).fit(flows)
    with pytest.raises(ValueError, match="n_listed must be a positive whole number"):
        byte_reasons(detector, flows, n_listed=n_listed)
