"""Rows of payload, payload lengths, and tables that scikit-learn cuts and users join."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from captures import pcap, tcp, udp
from naive import MPLS
from packets import VXLAN_HEADER, Ether
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE, CookedLinux, CookedLinuxV2, Dot1AD, Dot1Q, Loopback
from scapy.layers.ppp import HDLC, PPP, PPPoE
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing
from test_persistence import rewritten

from sklearn_docids import AutoencoderDetector, FlowSampler, load_detector, save_detector
from sklearn_docids.capture import FlowTable, folders
from sklearn_docids.exceptions import ModelFileError

CLIENT, SERVER = 40_000, 80


def sampled(packets, link_type=1, times=None, captured=None, layout="payload", **parameters):
    capture = pcap(packets, link_type=link_type, times=times, captured=captured)
    return FlowSampler(layout=layout, **parameters).flows(io.BytesIO(capture))


def places(flows):
    return flows.X.reshape(len(flows), flows.n_packets, -1)


def sent(flags, payload=b"", **fields):
    return tcp(CLIENT, SERVER, flags, payload, **fields)


def answered(flags, payload=b""):
    return tcp(SERVER, CLIENT, flags, payload, src="10.0.0.2", dst="10.0.0.1")


HANDSHAKE = [sent("S"), answered("SA"), sent("A")]


def test_packets_with_payload_stand_first_each_behind_its_description():
    flows = sampled([*HANDSHAKE, sent("PA", b"GET /"), answered("A"), answered("PA", b"200 OK" * 9)], n_bytes=16)
    assert places(flows)[0].tolist() == [
        [6, 1, 0, 5, 0x18, 4, 0, 80, *b"GET /", 0, 0, 0],
        [6, 2, 0, 54, 0x18, 6, 0, 80, *b"200 OK20"],
        [6, 1, 0, 0, 0x02, 1, 0, 80, *bytes(8)],
        [6, 2, 0, 0, 0x12, 2, 0, 80, *bytes(8)],
    ]
    assert flows.kept_bytes.tolist() == [[13, 16, 8, 8]]
    assert flows.payload_lengths.tolist() == [[5, -54, 0, 0]]


def test_the_row_is_of_twice_as_many_packets_as_it_has_room_for():
    packets = [*HANDSHAKE, *[sent("A")] * 4, sent("PA", b"8th"), sent("PA", b"9th")]
    flows = sampled(packets)
    assert places(flows)[0, :, 5].tolist() == [8, 1, 2, 3]
    flows = sampled([sent("PA", bytes([i])) for i in range(9)])
    assert places(flows)[0, :, 5].tolist() == [1, 2, 3, 4]


def test_numbers_that_need_more_bytes_saturate():
    flows = sampled([sent("A")] * 299 + [sent("PA", b"x")], n_packets=300, n_bytes=9)
    assert places(flows)[0, [0, 1, 254, 255, 299], 5].tolist() == [255, 1, 254, 255, 255]
    jumbogram = bytes(
        Ether() / IPv6(src="fd00::1", dst="fd00::2", plen=0) / UDP(sport=5, dport=53, len=0) / bytes(70_000)
    )
    flows = sampled([jumbogram])
    assert (flows.payload_lengths[0, 0], places(flows)[0, 0, 2:4].tolist()) == (70_000, [255, 255])


def test_direction_port_and_lengths_are_those_of_the_final_direction():
    # Both ports are dynamic ones: the first packet decides, until the SYN that was sent before it comes.
    back = {"src": "10.0.0.2", "dst": "10.0.0.1"}
    packets = [tcp(60_001, 60_000, "PA", b"back", **back), tcp(60_000, 60_001, "S"), tcp(60_000, 60_001, "A", b"to")]
    for layout in ("packets", "payload"):
        flows = sampled(packets, layout=layout)
        assert (flows.dst_port[0], flows.payload_backward[0]) == (60_001, 4)
        assert sorted(flows.payload_lengths[0].tolist()) == [-4, 0, 0, 2]
    assert places(flows)[0, :3, 1].tolist() == [2, 1, 1]
    assert places(flows)[0, :, 6:8].tolist() == [[*(60_001).to_bytes(2, "big")]] * 3 + [[0, 0]]


def test_the_service_port_is_under_the_policy_of_ports_and_nothing_else_is():
    packets = [*HANDSHAKE, sent("PA", b"hello")]
    kept = sampled(packets, fields="raw")
    for fields in ("portable", "no_addresses"):
        assert (sampled(packets, fields=fields).X == kept.X).all()
    zeroed = sampled(packets, fields={"ports": "zero"})
    assert not places(zeroed)[..., 6:8].any()
    assert (np.delete(places(zeroed), [6, 7], axis=2) == np.delete(places(kept), [6, 7], axis=2)).all()


def test_a_random_service_port_is_one_in_all_packets_and_becomes_what_the_port_becomes():
    capture = pcap([*HANDSHAKE, sent("PA", b"hello"), udp(CLIENT, SERVER)])
    fields = {"ports": "randomize", "ttl": "zero"}
    payload, packets = (
        FlowSampler(fields=fields, random_state=0, layout=layout).fit_transform(io.BytesIO(capture))
        for layout in ("payload", "packets")
    )
    ports = payload.reshape(2, 4, 80)[..., 6:8]
    assert (ports[0] == packets.reshape(2, 4, 80)[0, 0, 36:38]).all()
    assert (ports[1, 0] == packets.reshape(2, 4, 80)[1, 0, 36:38]).all()
    assert not ports[1, 1:].any()
    assert (ports[0, 0] != [0, 80]).any()
    assert (ports[0, 0] != ports[1, 0]).any()


@pytest.mark.parametrize(
    ("captured", "kept", "truncated"), [(54, 8, True), (57, 11, True), (50, 8, True), (126, 80, False)]
)
def test_a_row_is_truncated_where_the_capture_lacks_payload_that_it_has_room_for(captured, kept, truncated):
    flows = sampled([sent("PA", bytes(range(100)))], captured=[captured])
    assert flows.kept_bytes[0].tolist() == [kept, 0, 0, 0]
    assert bytes(places(flows)[0, 0, 8:kept]) == bytes(range(kept - 8))
    assert flows.truncated.tolist() == [truncated]


def test_packets_without_payload_lack_none():
    assert not sampled([sent("S", options=[("MSS", 1460)])], captured=[54]).truncated[0]


@pytest.mark.parametrize("n_bytes", [1, 8])
def test_rows_without_room_for_payload_are_refused(n_bytes):
    with pytest.raises(ValueError, match=rf"layout='payload' needs n_bytes of more than 8, .* got n_bytes={n_bytes}"):
        FlowSampler(n_bytes=n_bytes, layout="payload").fit([])


# name -> (link type, the headers in front of a packet of a version of IP)
def typed(version):
    return {4: 0x0800, 6: 0x86DD}[version]


WRAPPERS = {
    "ethernet": (1, lambda ip: Ether() / ip),
    "vlan": (1, lambda ip: Ether() / Dot1Q(vlan=5) / ip),
    "qinq": (1, lambda ip: Ether() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / ip),
    "mpls": (1, lambda ip: Ether(type=0x8847) / MPLS(label=5, s=1) / ip),
    "raw": (101, lambda ip: ip),
    "null": (0, lambda ip: Loopback(type={4: 2, 6: 30}[ip.version]) / ip),
    "linux cooked": (113, lambda ip: CookedLinux(proto=typed(ip.version)) / ip),
    "linux cooked 2": (276, lambda ip: CookedLinuxV2(proto=typed(ip.version)) / ip),
    "pppoe": (1, lambda ip: Ether(type=0x8864) / PPPoE() / PPP(proto={4: 0x21, 6: 0x57}[ip.version]) / ip),
    "ppp serial": (50, lambda ip: HDLC() / PPP(proto={4: 0x21, 6: 0x57}[ip.version]) / ip),
    "vxlan": (1, lambda ip: Ether() / IP(src="9.0.0.1", dst="9.0.0.2") / VXLAN_HEADER / bytes(Ether() / ip)),
    "gre": (1, lambda ip: Ether() / IP(src="9.0.0.1", dst="9.0.0.2") / GRE(proto=typed(ip.version)) / ip),
    "ip in ip": (1, lambda ip: Ether() / IPv6(src="fd00::8", dst="fd00::9") / ip),
    "padded": (1, lambda ip: bytes(Ether() / ip) + b"\xff" * 7),
}


def conversation(version):
    """Return the packets of connections and questions over one version of IP, from their IP headers on."""
    ends = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}[version]

    def packet(forward, transport, payload=b""):
        src, dst = ends if forward else ends[::-1]
        return (IP(src=src, dst=dst) if version == 4 else IPv6(src=src, dst=dst)) / transport / payload

    def tcp_packet(forward, flags, payload=b"", **fields):
        ports = (CLIENT, SERVER) if forward else (SERVER, CLIENT)
        return packet(forward, TCP(sport=ports[0], dport=ports[1], flags=flags, **fields), payload)

    timestamps = {"options": [("Timestamp", (1, 2))]}
    return [
        tcp_packet(False, "SA"),
        tcp_packet(True, "S", options=[("MSS", 1460), ("WScale", 7)]),
        tcp_packet(True, "A"),
        tcp_packet(True, "PA", b"GET / HTTP/1.1\r\n\r\n" * 7, **timestamps),
        tcp_packet(False, "A"),
        packet(True, UDP(sport=5, dport=53), b"question"),
        tcp_packet(False, "PA", bytes(range(256)) * 4, **timestamps),
        packet(False, UDP(sport=53, dport=5), b"answer"),
        tcp_packet(False, "FA"),
    ]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("link_type", "wrap"), WRAPPERS.values(), ids=WRAPPERS)
def test_a_conversation_has_the_same_rows_however_it_is_wrapped(link_type, wrap, version):
    expected = sampled(conversation(4), link_type=101)
    flows = sampled(map(wrap, conversation(version)), link_type=link_type, tunnels="innermost")
    assert expected.payload_lengths.tolist() == [[126, -1024, 0, 0], [8, -6, 0, 0]]
    assert (flows.X == expected.X).all()
    assert (flows.kept_bytes == expected.kept_bytes).all()
    assert (flows.payload_lengths == expected.payload_lengths).all()


@pytest.mark.parametrize(
    ("packets", "n_counted"),
    [
        ([sent("S"), *[sent("PA", b"x")] * 3], 3),  # two with payload
        ([sent("A")] * 5, 4),  # twice as many packets
        ([sent("PA", b"x")] * 3, 2),
        ([*HANDSHAKE, sent("PA", b"x")], 4),
    ],
)
def test_a_stream_gives_a_flow_when_its_row_cannot_change_any_more(packets, n_counted):
    sampler = FlowSampler(2, layout="payload")
    capture = pcap(packets)
    (flows,) = sampler.iter_flows(io.BytesIO(capture))
    whole = sampler.flows(io.BytesIO(capture))
    assert flows.packets_forward[0] + flows.packets_backward[0] == n_counted
    assert (flows.X == whole.X).all()
    assert (flows.payload_lengths == whole.payload_lengths).all()


def mixed_capture(rng):
    """Return packets of some hundred flows that idle out, with and without payload."""
    packets = []
    for _ in range(600):
        payload = bytes(rng.integers(0, 256, rng.choice([0, 0, 5, 100]), dtype=np.uint8))
        packets.append(tcp(int(rng.integers(1, 30)), 80, "PA", payload))
    return pcap(packets, times=np.cumsum(rng.choice([0.0, 1.0, 9.0], 600)))


@pytest.mark.parametrize("early", [True, False])
def test_streamed_rows_of_payload_are_those_of_the_whole_capture(early):
    capture = mixed_capture(np.random.default_rng(0))
    sampler = FlowSampler(layout="payload", idle_timeout=60.0, max_live_flows=20)
    whole = sampler.flows(io.BytesIO(capture))
    parts = FlowTable.concatenate(list(sampler.iter_flows(io.BytesIO(capture), early=early)))
    parts = parts[np.argsort(parts.rows.records["row"])]
    assert len(whole) > 100
    for name in ("X", "kept_bytes", "payload_lengths"):
        assert (parts[name] == whole[name]).all()


# Tables


@pytest.fixture
def tables():
    """The flows of two captures in each layout."""
    rng = np.random.default_rng(0)
    captures = [mixed_capture(rng) for _ in range(2)]
    return {
        layout: [FlowSampler(layout=layout).flows(io.BytesIO(capture)) for capture in captures]
        for layout in ("packets", "payload")
    }


def assert_same(one, other):
    assert one.layout == other.layout
    assert (one.rows.records == other.rows.records).all()
    for name in ("X", "kept_bytes", "payload_lengths", "capture"):
        assert one[name].dtype == other[name].dtype
        assert (one[name] == other[name]).all()
    assert (one.captures, one.counters, one.ignored) == (other.captures, other.counters, other.ignored)


def test_payload_lengths_are_whole_numbers_that_cannot_be_written_to(tables):
    lengths = tables["payload"][0].payload_lengths
    assert (lengths.dtype, lengths.shape) == (np.int64, (len(tables["payload"][0]), 4))
    with pytest.raises(ValueError, match="read-only"):
        lengths[:] = 0


@pytest.mark.parametrize("layout", ["packets", "payload"])
def test_the_layout_stays_with_slices_and_files(tables, tmp_path, layout):
    flows = tables[layout][0]
    assert (flows.layout, flows.n_packets, flows.shape) == (layout, 4, (len(flows),))
    for part in (flows[3:9], flows[flows.src_port > 9], flows[0], flows[:0]):
        assert (part.layout, part.n_packets) == (layout, 4)
        for suffix in (".npz", ".parquet"):
            part.save(tmp_path / f"flows{suffix}")
            assert_same(FlowTable.load(tmp_path / f"flows{suffix}"), part)


@pytest.mark.parametrize("layout", ["packets", "payload"])
def test_a_folder_of_flows_has_layout_and_lengths(tmp_path, layout):
    path = tmp_path / "capture.pcap"
    path.write_bytes(mixed_capture(np.random.default_rng(0)))
    sampler = FlowSampler(layout=layout)
    sampler.write(path, tmp_path / "out")
    assert_same(FlowTable.load(tmp_path / "out"), sampler.flows(path))


def test_joined_tables_have_the_flows_and_captures_of_all(tables):
    first, second = tables["packets"]
    joined = FlowTable.concatenate([first[5:], second, first[:5]])
    assert joined.X.tolist() == [*first.X[5:].tolist(), *second.X.tolist(), *first.X[:5].tolist()]
    assert joined.payload_lengths.tolist() == [
        *first.payload_lengths[5:].tolist(), *second.payload_lengths.tolist(), *first.payload_lengths[:5].tolist(),
    ]  # fmt: skip
    assert joined.capture.tolist() == [0] * (len(first) - 5) + [1] * len(second) + [2] * 5
    assert joined.captures == [*first.captures, *second.captures, *first.captures]
    assert joined.counters == [*first.counters, *second.counters, *first.counters]
    with pytest.raises(ValueError, match="tables is empty"):
        FlowTable.concatenate([])


def test_tables_of_other_layouts_or_shapes_are_not_joined(tables):
    with pytest.raises(ValueError, match=r"layout='packets', .*n_bytes=80 and rows of layout='payload', n_packets=4"):
        FlowTable.concatenate([tables["packets"][0], tables["payload"][0]])
    with pytest.raises(ValueError, match=r"n_packets=4, n_bytes=80 and rows of layout='packets', n_packets=2"):
        FlowTable.concatenate([tables["packets"][0], sampled([udp()], layout="packets", n_packets=2, n_bytes=160)])


CHANGES = {
    "no known layout": (lambda rows: replace(rows, layout="other"), "its layout is 'other', there are packets and pay"),
    "a layout that is no text": (lambda rows: replace(rows, layout=[1]), r"its layout is \[1\]"),
    "no room for payload": (
        lambda rows: replace(rows, X=rows.X[:, :32].copy(), kept_bytes=np.minimum(rows.kept_bytes, 8)),
        "its layout is 'payload', but a packet has room for 8 bytes",
    ),
    "payload of no packet": (
        lambda rows: replace(rows, kept_bytes=np.zeros_like(rows.kept_bytes)),
        "payload_lengths holds payload of packets of which no byte was kept",
    ),
    "more payload than the flow has": (
        lambda rows: replace(rows, payload_lengths=rows.payload_lengths * 1000),
        "payload_lengths holds more payload than the flows have",
    ),
    "payload the other way": (
        lambda rows: replace(rows, payload_lengths=-rows.payload_lengths),
        "payload_lengths holds more payload than the flows have",
    ),
}


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_rows_that_no_capture_could_have_given_are_not_loaded(tables, tmp_path, suffix, change, message):
    flows = tables["payload"][0]
    flows.rows = change(flows.rows)
    flows.save(tmp_path / f"flows{suffix}")
    with pytest.raises(ValueError, match=rf"flows{suffix}: no flow table: {message}"):
        FlowTable.load(tmp_path / f"flows{suffix}")


@pytest.mark.parametrize("layouts", [("packets", "payload"), ("payload", None)])
def test_a_folder_of_several_layouts_or_none_is_refused(tmp_path, layouts):
    for name in "ab":
        (tmp_path / name).write_bytes(pcap([udp()]))
    FlowSampler().write([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    described = json.loads((tmp_path / "out" / "captures.json").read_text())
    for entry, layout in zip(described, layouts, strict=True):
        entry["layout"] = layout
        if layout is None:
            del entry["layout"]
    (tmp_path / "out" / "captures.json").write_text(json.dumps(described))
    folders.seal(tmp_path / "out")
    with pytest.raises(ValueError, match=r"out: no flow table: .*layout"):
        FlowTable.load(tmp_path / "out")


# scikit-learn


class CountingDetector(BaseEstimator):
    """Takes tables, and nothing else: the score is how many flows it was given."""

    def __init__(self, power=1):
        self.power = power

    def fit(self, X, y=None):
        assert isinstance(X, FlowTable)
        assert y is None or len(X) == len(y)
        return self

    def score(self, X, y=None):
        assert isinstance(X, FlowTable)
        return float(len(X)) ** self.power


@pytest.mark.parametrize("key", [[3, 1], np.array([3, 1]), slice(1, 4), 2, np.int64(2)], ids=repr)
def test_scikit_learn_selects_flows(tables, key):
    flows = tables["payload"][0]
    assert_same(_safe_indexing(flows, key), flows[key])
    mask = np.arange(len(flows)) % 3 == 0
    assert_same(_safe_indexing(flows, mask), flows[mask])
    assert_same(_safe_indexing(flows, mask.tolist()), flows[mask])


def test_scikit_learn_splits_tables(tables):
    flows = tables["packets"][0]
    ports = flows.src_port
    train, test, train_ports, test_ports = train_test_split(flows, ports, test_size=0.25, random_state=0)
    assert isinstance(train, FlowTable)
    assert isinstance(test, FlowTable)
    assert (train.src_port == train_ports).all()
    assert (test.src_port == test_ports).all()
    assert len(train) + len(test) == len(flows)


def test_scikit_learn_validates_and_searches_with_tables(tables):
    flows = tables["payload"][0]
    assert cross_val_score(CountingDetector(), flows, cv=3).sum() == len(flows)
    search = GridSearchCV(CountingDetector(), {"power": [1, 2]}, cv=2).fit(flows)
    assert search.best_params_ == {"power": 2}
    assert isinstance(search.best_estimator_, CountingDetector)


def test_a_table_is_no_array_and_says_what_is(tables):
    with pytest.raises(TypeError, match=r"a FlowTable is no array of numbers; give its rows, table\.X"):
        np.asarray(tables["packets"][0])


# Output


@pytest.fixture
def capture(tmp_path):
    path = tmp_path / "capture.pcap"
    path.write_bytes(mixed_capture(np.random.default_rng(0)))
    return path


def test_flows_come_out_where_they_are_asked_for(capture):
    rows, sampler = (FlowSampler(fields="paper", random_state=0, output=output) for output in ("rows", "flows"))
    assert_same(sampler.transform(capture), rows.flows(capture))
    assert (rows.fit_transform(capture) == sampler.fit_transform(capture).X).all()
    assert (rows.transform(capture) != sampler.fit_transform(capture).X).any()
    X, y, groups = sampler.sample([capture, capture], ["a", "b"])
    expected = rows.sample([capture, capture], ["a", "b"])
    assert (expected[0] == X.X).all()
    assert (y == expected[1]).all()
    assert (groups == expected[2]).all()
    assert (sampler.get_feature_names_out() == rows.get_feature_names_out()).all()


def test_a_pipeline_hands_flows_to_a_detector_of_tables(capture):
    class Lengths(BaseEstimator):
        def fit(self, flows, y=None):
            self.mean_ = flows.payload_lengths.mean()
            return self

        def score_samples(self, flows):
            return -abs(flows.payload_lengths - self.mean_).max(axis=1)

    pipeline = Pipeline([("sampler", FlowSampler(output="flows")), ("detector", Lengths())]).fit(capture)
    assert pipeline.score_samples(capture).shape == FlowSampler().flows(capture).shape


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_flows_do_not_go_into_a_data_frame(capture, container):
    sampler = FlowSampler(output="flows").set_output(transform=container)
    for method in (sampler.transform, sampler.fit_transform):
        with pytest.raises(ValueError, match=rf"output='flows' gives a FlowTable, which does not go into {container}"):
            method(capture)
    with config_context(transform_output=container):
        assert isinstance(sampler.set_output(transform="default").transform(capture), FlowTable)


def test_a_model_keeps_layout_and_output(tmp_path):
    X = np.random.default_rng(0).integers(0, 256, (20, 40), dtype=np.uint8)
    detector = AutoencoderDetector(max_epochs=1, random_state=0).fit(X)
    save_detector(detector, tmp_path / "model", FlowSampler(2, 20, layout="payload", output="flows"))
    loaded = load_detector(tmp_path / "model").sampler_
    assert (loaded.layout, loaded.output) == ("payload", "flows")


@pytest.mark.parametrize("change", [{"layout": "other"}, {"output": 1}, {"n_packets": 5, "n_bytes": 8}], ids=str)
def test_a_model_whose_sampler_cannot_be_is_refused(tmp_path, change):
    X = np.random.default_rng(0).integers(0, 256, (20, 40), dtype=np.uint8)
    save_detector(
        AutoencoderDetector(max_epochs=1, random_state=0).fit(X), tmp_path / "m", FlowSampler(2, 20, layout="payload")
    )
    path = rewritten(tmp_path / "m", tmp_path / "changed", lambda config: config["sampler"].update(change))
    with pytest.raises(ModelFileError, match="FlowSampler refuses its parameters"):
        load_detector(path)
