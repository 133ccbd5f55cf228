"""Rows of another kind than those of fit: scale, link layer and header-field policy are said, and nothing else is."""

import pickle
import warnings

import numpy as np
import pytest
from captures import pcap, tcp, udp
from packets import LINK_LAYERS

from sklearn_docids import (
    AutoencoderDetector,
    ConvAutoencoderDetector,
    DOCFeatures,
    DOCIDSDetector,
    FlowSampler,
    ReferenceData,
    load_detector,
    save_detector,
)
from sklearn_docids.capture.headers import find_transport
from sklearn_docids.capture.layouts import FIELDS
from sklearn_docids.detectors import NearestNeighborDetector, SeedEnsemble, StatisticDetector
from sklearn_docids.detectors._frames import frame_of, is_frame_name
from sklearn_docids.detectors._profile import RowProfile, check_rows, is_profile

rng = np.random.default_rng(0)
NOT_KNOWN = {
    "atm", "mpls alone", "ppi", "ppi raw", "ppi wireless", "ppp compressed", "ppp mpls", "ppp over ethernet",
    "radiotap", "wireless", "wireless bridge", "wireless qos",
}  # fmt: skip
SMALL = {"max_epochs": 1, "random_state": 0}
DETECTORS = [
    DOCIDSDetector(lambda_descriptiveness=0, **SMALL),
    DOCIDSDetector(lambda_descriptiveness=0, score_method="reconstruction", **SMALL),
    AutoencoderDetector(**SMALL),
    ConvAutoencoderDetector(**SMALL),
    SeedEnsemble(AutoencoderDetector(**SMALL), n_estimators=1),
    DOCFeatures(lambda_descriptiveness=0, **SMALL),
    NearestNeighborDetector(),
    StatisticDetector("ttl"),
]


def sampled(write, packets, link_type=1, **settings):
    return FlowSampler(2, 60, **settings).transform([write(pcap(packets, link_type=link_type))])


def flows(n=60, link=True):
    """Return packets of as many flows, TCP and UDP."""
    return [
        make(sport=1024 + i, payload=bytes(rng.integers(0, 256, 20, dtype=np.uint8)), link=link)
        for i, make in enumerate([tcp, udp] * (n // 2))
    ]


def warnings_of(function, *args):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*args)
    return [str(warning.message) for warning in caught]


def score(detector, X):
    return detector.transform(X) if isinstance(detector, DOCFeatures) else detector.score_samples(X)


@pytest.fixture
def ethernet(write):
    return sampled(write, flows())


@pytest.mark.parametrize("name", LINK_LAYERS)
def test_headers_are_found_where_the_sampler_finds_them_told_the_link_type(name):
    link_type, packet, ip = LINK_LAYERS[name]
    data = np.frombuffer(bytes(packet), np.uint8)
    frame = frame_of(bytes(packet))
    if name in NOT_KNOWN:
        assert frame is None
        return
    _, version, at, protocol, transport, _ = find_transport(data, 0, len(data), link_type)
    assert (frame.version, frame.ip, frame.protocol, frame.transport) == (f"IPv{version}", at, protocol, transport)
    assert at == ip
    assert is_frame_name(frame.name)
    assert frame_of(bytes(packet)[: at + 6]) is None  # cut before the protocol


def test_names_tell_frames_of_different_lengths_apart():
    frames = [frame_of(bytes(packet)) for _, packet, _ in LINK_LAYERS.values()]
    places = {}
    for frame in filter(None, frames):
        places.setdefault(frame.name, set()).add(frame.ip)
    assert [found for found in places.values() if len(found) > 1] == []
    assert frame_of(bytes(LINK_LAYERS["vlan mpls"][1])).name == "Ethernet, VLAN tag, MPLS label, IPv4"


@pytest.mark.parametrize("n", [0, 1, 14, 20, 96])
def test_what_is_no_packet_has_no_frame(n):
    assert frame_of(bytes(n)) is None
    text = b"GET /index.html HTTP/1.1, likes and hosts, Each one of these letters may begin an IP header; or none " * 9
    assert not any(frame_of(text[i : i + n]) for i in range(200))
    assert sum(frame_of(rng.bytes(n)) is not None for _ in range(2000)) < 20


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda detector: type(detector).__name__)
def test_rows_of_another_kind_are_said_by_every_detector(detector, ethernet, write):
    detector.fit(ethernet)
    assert warnings_of(score, detector, ethernet[::-1]) == []
    assert warnings_of(score, detector, ethernet[:1].astype(np.float32)) == []
    with pytest.warns(UserWarning, match=r"100% of the rows of X begin with \(no link header, IPv4\).*Ethernet, IPv4"):
        score(detector, sampled(write, flows(link=False), 101))
    with pytest.warns(UserWarning, match="header fields ip, mac are zero in the rows of fit, but not in X"):
        score(detector, sampled(write, flows(), fields="raw"))
    with pytest.raises(ValueError, match="X holds fractions, at most 1, but the rows of fit hold bytes, 0 to 255"):
        score(detector, ethernet / 255)


@pytest.mark.parametrize("name", [*sorted(set(LINK_LAYERS) - NOT_KNOWN - {"ethernet"}), "ppi"])
def test_each_link_layer_and_tag_is_named(name, ethernet):
    data = bytes(LINK_LAYERS[name][1])
    found = "no header that is known" if name == "ppi" else frame_of(data).name
    strange = np.tile(np.frombuffer(data.ljust(ethernet.shape[1], b"\0"), np.uint8), (30, 1))
    profile, other = RowProfile.of(ethernet), RowProfile.of(strange)
    (warning,) = [text for text in warnings_of(check_rows, profile, strange) if "link" in text]
    assert f"of X begin with ({found}); the rows of fit begin with (Ethernet, IPv4)" in warning
    (warning,) = [text for text in warnings_of(check_rows, other, ethernet) if "link" in text]
    assert f"of X begin with (Ethernet, IPv4); the rows of fit begin with ({found})" in warning


@pytest.mark.parametrize(
    ("n_strange", "n_rows", "is_said"),
    [(19, 19, False), (20, 20, True), (19, 100, False), (20, 200, True), (20, 201, False)],
)
def test_few_strange_rows_are_a_matter_of_the_score(n_strange, n_rows, is_said, ethernet, write):
    X = np.resize(ethernet, (n_rows, 120))
    tagged = [bytes(packet)[:12] + b"\x81\0\0\x05" + bytes(packet)[12:] for packet in flows()]
    X[:n_strange] = sampled(write, tagged)[:n_strange]
    assert bool(warnings_of(check_rows, RowProfile.of(ethernet), X)) == is_said
    assert warnings_of(check_rows, RowProfile.of(X[n_strange - 1 :]), X[n_strange:]) == []  # one such row was learned


@pytest.fixture
def payload(write):
    return sampled(write, flows(), layout="payload")


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda detector: type(detector).__name__)
def test_rows_of_the_other_layout_are_said_by_name(detector, ethernet, payload):
    detector.fit(payload)
    assert warnings_of(score, detector, payload[::-1]) == []
    (warning,) = warnings_of(score, detector, ethernet)
    assert "the rows of X are of FlowSampler(layout='packets'), but the rows of fit are of layout='payload'" in warning
    detector.fit(ethernet)
    (warning,) = warnings_of(score, detector, payload)
    assert "the rows of X are of FlowSampler(layout='payload'), but the rows of fit are of layout='packets'" in warning


def test_a_reference_or_more_rows_of_the_other_layout_are_said(ethernet, payload):
    detector, labels = DOCIDSDetector(**SMALL), np.arange(len(ethernet)) % 2
    with pytest.warns(
        UserWarning, match=r"the rows of reference X are of FlowSampler\(layout='payload'\), but the targ"
    ):
        detector.fit(ethernet, reference=(payload, labels))
    detector = AutoencoderDetector(**SMALL).partial_fit(payload)
    with pytest.warns(UserWarning, match=r"layout='packets'\), but the rows of earlier fits are of layout='payload'"):
        detector.partial_fit(ethernet)


def test_policies_of_rows_of_payload_are_compared(payload, write):
    zeroed = sampled(write, flows(), layout="payload", fields={"ports": "zero"})
    assert frame_of(payload[0].tobytes()).name == frame_of(zeroed[0].tobytes()).name == "description of payload"
    assert is_frame_name("description of payload")
    for divisor in (1, 255):
        with pytest.warns(UserWarning, match="header fields ports are zero in X, but not in the rows of fit"):
            check_rows(RowProfile.of(payload / divisor), zeroed / divisor)
    assert is_profile(RowProfile.of(payload)._asdict())


def test_what_an_attacker_may_zero_is_not_taken_for_a_policy(ethernet, write):
    floods = sampled(write, [tcp(sport=1024 + i, seq=0, window=0) for i in range(60)])
    assert RowProfile.of(floods).zeroed() == {"mac", "ip", "tcp_seq", "tcp_window"}
    assert warnings_of(check_rows, RowProfile.of(ethernet), floods) == []
    with pytest.warns(UserWarning, match="header fields ttl are zero in X, but not in the rows of fit"):
        check_rows(RowProfile.of(ethernet), sampled(write, flows(), fields="portable"))


@pytest.mark.parametrize(
    ("fitted", "scored"),
    [
        (rng.integers(0, 256, (60, 40)), rng.integers(0, 256, (60, 40))),
        (rng.integers(0, 2, (60, 40)), rng.uniform(0, 1, (60, 40))),
        (rng.integers(0, 256, (60, 40)), rng.integers(0, 2, (60, 40))),
        (rng.integers(0, 256, (60, 40)), rng.integers(0, 10**6, (60, 40))),
        (rng.integers(0, 256, (60, 40)), rng.integers(0, 256, (60, 40)) + rng.normal(0, 0.1, (60, 40))),
        (rng.normal(size=(60, 40)), rng.normal(size=(60, 40))),
        (rng.normal(size=(60, 40)), rng.uniform(0, 1, (60, 40))),
        (rng.uniform(0, 1, (60, 40)), rng.normal(size=(60, 40))),
        (rng.uniform(0, 1, (60, 3)) > 0.5, rng.uniform(0, 1, (60, 3)) > 0.5),
    ],
)
def test_tables_that_are_no_packets_are_taken_quietly(fitted, scored):
    profile = RowProfile.of(fitted)
    for rows in (scored, scored[:1], np.asfortranarray(scored), scored[:0]):
        assert warnings_of(check_rows, profile, rows) == []


def test_bytes_that_were_scaled_otherwise_are_said(ethernet):
    profile = RowProfile.of(ethernet)
    standardized = (ethernet - ethernet.mean(axis=0)) / (ethernet.std(axis=0) + 1)
    for scaled in (standardized, ethernet.astype(np.int8), ethernet / 2.5):
        with pytest.warns(UserWarning, match="fractions or negative numbers in X, but bytes, 0 to 255, in the rows of"):
            check_rows(profile, scaled)
    with pytest.warns(UserWarning, match="fractions or negative numbers in the rows of fit, but bytes"):
        check_rows(RowProfile.of(standardized), ethernet)


def test_rows_divided_by_255_are_known_by_their_headers_too(ethernet, write):
    profile = RowProfile.of(ethernet / 255)
    assert profile == RowProfile.of(ethernet)._replace(values="fractions")
    assert RowProfile.of((ethernet / 255).astype(np.float32)) == profile
    with pytest.raises(ValueError, match="X holds bytes, 0 to 255, but the rows of fit hold fractions"):
        check_rows(profile, ethernet)


def test_a_reference_of_another_kind_is_said(ethernet, write):
    def fit(reference, cls=DOCIDSDetector):
        cls(**SMALL).fit(ethernet, reference=ReferenceData(reference, np.arange(len(reference)) % 2))

    for cls in (DOCIDSDetector, DOCFeatures):
        fit(sampled(write, flows()), cls)
        with pytest.warns(
            UserWarning, match="header fields ip, mac are zero in the target rows, but not in reference X"
        ):
            fit(sampled(write, flows(), fields="raw"), cls)
        with pytest.warns(UserWarning, match=r"100% of the rows of reference X begin with \(no link header, IPv4\)"):
            fit(sampled(write, flows(link=False), 101), cls)
        with pytest.raises(ValueError, match="reference X holds fractions, at most 1, but the target rows hold bytes"):
            fit(ethernet / 255, cls)


def test_fits_that_go_on_add_up(ethernet, write):
    bare = sampled(write, flows(link=False), 101)
    detector = AutoencoderDetector(**SMALL).partial_fit(ethernet).partial_fit(bare)
    assert detector._profile.frames == {"Ethernet, IPv4": 60, "no link header, IPv4": 60}
    detector.score_samples(bare)
    before = detector._profile
    with pytest.raises(ValueError, match="the rows of earlier fits hold bytes"):
        detector.partial_fit(ethernet / 255)
    assert detector._profile is before
    with pytest.warns(UserWarning, match="ip, mac are zero in the rows of earlier fits, but not in X"):
        detector.set_params(warm_start=True).fit(sampled(write, flows(), fields="raw"))
    assert detector.set_params(warm_start=False).fit(bare)._profile == RowProfile.of(bare)


def test_the_knowledge_travels_in_pickles_and_model_files(ethernet, write, tmp_path):
    detector = AutoencoderDetector(**SMALL).fit(ethernet)
    save_detector(detector, tmp_path / "m")
    for copied in (pickle.loads(pickle.dumps(detector)), load_detector(tmp_path / "m")):
        assert copied._profile == detector._profile
        with pytest.warns(UserWarning, match="link header"):
            copied.score_samples(sampled(write, flows(link=False), 101))


def profile_of(**changes):
    fields = {name: [2, 1] for name in FIELDS}
    return {"n_rows": 3, "values": "bytes", "frames": {"Ethernet, IPv4": 3}, "fields": fields, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"n_rows": -1}, {"n_rows": 2}, {"n_rows": 3.0}, {"n_rows": True}, {"n_rows": 2**70}, {"values": "words"},
        {"values": ["bytes"]}, {"frames": [3]}, {"frames": {"Ethernet, IPv4": -1}}, {"frames": {"Ethernet, IPv4": 4}},
        {"frames": {"\x1b[2J, IPv4": 1}}, {"frames": {"Ethernet": 1}}, {"frames": {"Ethernet, x, IPv4": 1}},
        {"fields": {}}, {"fields": {**profile_of()["fields"], "mac": [1, 2]}}, {"more": 1},
        {"fields": {**profile_of()["fields"], "mac": [4, 1]}}, {"fields": {**profile_of()["fields"], "mac": 1}},
    ],
)  # fmt: skip
def test_a_profile_of_a_model_file_is_checked_by_field_and_type(changes):
    assert is_profile(profile_of())
    assert not is_profile(profile_of(**changes))
    assert not is_profile(None)
