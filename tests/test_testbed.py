"""The bundled testbed: what is in it, that its labels fit its flows, and the scripts that cut and check it."""

import csv
import lzma
import re
import runpy
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from captures import pcap, tcp, udp

from sklearn_docids import FlowSampler
from sklearn_docids.datasets import _testbed, load_testbed

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "sklearn_docids" / "datasets" / "testbed"
SCRIPTS = ROOT / "testbed"
KINDS = {
    "port_scan", "ssh_guessing", "ftp_guessing", "web_guessing", "slow_http", "http_flood", "dns_tunnel",
    "beacon_http", "beacon_tls", "beacon_tcp", "exfiltration", "injection",
}  # fmt: skip


@pytest.fixture(scope="module")
def testbed():
    return load_testbed()


def test_files_are_small():
    sizes = [path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()]
    assert max(sizes) < 3_000_000
    assert sum(sizes) < 8_000_000


def test_amounts(testbed):
    names, counts = np.unique(testbed.y_reference, return_counts=True)
    assert len(names) >= 14
    assert dict(zip(names, counts, strict=True)) == {name: n for name, n in zip(names, counts, strict=True) if n >= 200}
    assert len(testbed.X_train) >= 3000
    assert np.sum(testbed.y_validation == 1) >= 2000
    assert np.sum(testbed.y_test == 1) >= 3000
    assert len(np.unique(testbed.groups)) >= 6
    for attack, tempo in ((testbed.attack_validation, testbed.tempo_validation), (testbed.attack, testbed.tempo)):
        assert set(attack) - {""} == KINDS
        for kind in KINDS:
            assert np.sum(attack == kind) >= 100
            assert set(tempo[attack == kind]) == {"quick", "slow"}
        assert (tempo[attack == ""] == "").all()


def test_parts_fit_together(testbed):
    assert len(testbed.X_reference) == len(testbed.y_reference)
    assert len(testbed.X_train) == len(testbed.groups)
    for period, suffix in (("validation", "_validation"), ("test", "")):
        rows = testbed[f"X_{period}"]
        assert rows.dtype == np.uint8
        assert rows.shape == (len(testbed[f"y_{period}"]), 320)
        np.testing.assert_array_equal(testbed[f"y_{period}"] == -1, testbed[f"attack{suffix}"] != "")
        np.testing.assert_array_equal(testbed[f"flows_{period}"].X, rows)
    assert "  beacon_tls: " in testbed.DESCR
    assert str(len(testbed.X_train)) in testbed.DESCR


@pytest.mark.parametrize("period", ["validation", "test"])
def test_lines_of_the_truth_are_flows(testbed, period):
    suffix = "_validation" if period == "validation" else ""
    with (BUNDLED / f"{period}.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len({(line["time"], line["source"], line["source_port"]) for line in lines}) == len(lines)
    # Where curl found its port taken there is no flow; those that share a UDP port with a normal one are left out.
    for kind in KINDS:
        n_written = sum(line["kind"] == kind for line in lines)
        assert n_written - 8 <= np.sum(testbed[f"attack{suffix}"] == kind) <= n_written
    flows = testbed[f"flows_{period}"]
    kinds = testbed[f"attack{suffix}"]
    ports = {"ssh_guessing": {22}, "ftp_guessing": {21}, "dns_tunnel": {53}, "beacon_tls": {443}, "beacon_tcp": {8443}}
    for kind, allowed in ports.items():
        assert set(flows.dst_port[kinds == kind].tolist()) == allowed
    assert flows.dst_port[kinds == ""].tolist().count(8443) == 0


def test_abnormal_hosts_are_busy_with_normal_things_too(testbed):
    flows, kinds = testbed.flows_test, testbed.attack
    abnormal = set(flows.src_ip[kinds != ""])
    assert len(abnormal) >= 4
    for host in abnormal:
        assert np.sum((flows.src_ip == host) & (kinds == "")) >= 100


def test_periods_begin_normal(testbed):
    for period, suffix in (("validation", "_validation"), ("test", "")):
        times, kinds = testbed[f"flows_{period}"].time_first, testbed[f"attack{suffix}"]
        n_before = np.sum(times < times[kinds != ""].min())
        assert n_before >= 300


def test_everything_stays_inside(testbed):
    for flows, subnet in ((testbed.flows_validation, "10.77.0."), (testbed.flows_test, "10.77.0.")):
        for address in np.concatenate([np.unique(flows.src_ip), np.unique(flows.dst_ip)]):
            assert address.startswith(subnet)


def test_truth_is_found_from_either_side_and_not_before_its_time(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text(
        "time,protocol,source,source_port,destination,destination_port,kind,tempo\n"
        "100.0,tcp,10.0.0.1,1000,10.0.0.2,80,scan,quick\n"
        "300.5,tcp,10.0.0.1,1001,10.0.0.2,80,flood,slow\n"
    )
    there = {"src": "10.0.0.1", "dst": "10.0.0.2", "dport": 80}
    back = {"src": "10.0.0.2", "dst": "10.0.0.1", "sport": 80}
    packets = [
        (100.2, tcp(sport=1000, **there)), (100.3, tcp(dport=1000, flags="SA", **back)),
        (100.4, tcp(dport=1001, flags="SA", **back)),  # before its time: somebody else's
        (101.0, tcp(sport=1002, **there)),
        (290.0, tcp(sport=1000, **there)),  # after its time
        (300.6, tcp(dport=1001, flags="SA", **back)),
    ]  # fmt: skip
    capture = BytesIO(pcap([packet for _, packet in packets], times=[time for time, _ in packets]))
    flows = FlowSampler(fields="raw").flows(capture)
    kinds, tempi = _testbed.truth_of(flows, path)
    assert kinds.tolist() == ["scan", "", "", "", "flood"]
    assert tempi.tolist() == ["quick", "", "", "", "slow"]


def test_a_sampler_that_wants_more_than_there_is_is_refused():
    for settings in ({"n_packets": 9}, {"n_bytes": 161}):
        with pytest.raises(ValueError, match="captures hold 8 packets of 160 bytes"):
            load_testbed(sampler=FlowSampler(**settings))
    wide = load_testbed(sampler=FlowSampler(8, 160))
    assert wide.X_test.shape[1] == 1280
    np.testing.assert_array_equal(wide.X_test.reshape(-1, 8, 160)[:, :4, :80], load_testbed().X_test.reshape(-1, 4, 80))


def test_rows_of_payload_are_those_of_the_whole_packets():
    for settings in ({"n_packets": 5}, {"n_bytes": 103}):
        with pytest.raises(ValueError, match=r"rows of layout='payload' with n_packets=4 of n_bytes=102, but the"):
            load_testbed(sampler=FlowSampler(layout="payload", **settings))
    testbed = load_testbed(sampler=FlowSampler(4, 102, layout="payload"))
    for part in ("reference", "train", "validation", "test"):
        flows = testbed[f"flows_{part}"]
        assert flows.layout == "payload"
        assert not flows.truncated.any()
        assert (testbed[f"X_{part}"] == flows.X).all()
    assert (testbed.X_test.reshape(-1, 4, 102)[:, 0, 1] > 0).all()


def test_tables_are_those_of_the_rows_whatever_the_samplers_output(testbed):
    sampler = FlowSampler(fields="paper", random_state=np.random.RandomState(0), output="flows")
    sampled = load_testbed(sampler=sampler)
    for part in ("reference", "train"):
        assert isinstance(sampled[f"X_{part}"], np.ndarray)
        assert np.shares_memory(sampled[f"X_{part}"], sampled[f"flows_{part}"].X)
        assert (sampled[f"flows_{part}"].src_ip == testbed[f"flows_{part}"].src_ip).all()
    assert len(sampled.y_reference) == len(sampled.flows_reference)
    assert (np.unique(sampled.flows_train.src_ip)[sampled.groups] == sampled.flows_train.src_ip).all()


def test_field_policy_of_training_holds_for_reference_and_training_rows(testbed):
    sampled = load_testbed(sampler=FlowSampler(fields="paper", random_state=0))
    raw = load_testbed(sampler=FlowSampler(fields="raw"))
    addresses = slice(26, 34)
    assert (testbed.X_train[:, addresses] == 0).all()
    testbed = raw
    assert (sampled.X_train[:, addresses] != testbed.X_train[:, addresses]).any(axis=1).all()
    assert (sampled.X_reference[:, addresses] != testbed.X_reference[:, addresses]).any(axis=1).all()
    np.testing.assert_array_equal(sampled.X_test, testbed.X_test)


def test_a_port_that_was_used_twice_leaves_no_label(tmp_path):
    path = tmp_path / "truth.csv"
    head = "time,protocol,source,source_port,destination,destination_port,kind,tempo\n"
    lines = [f"{time},udp,10.0.0.1,{port},10.0.0.2,53,tunnel,quick\n" for time, port in ((100, 1), (100, 2), (170, 3))]
    path.write_text(head + "".join(lines))
    packets = [
        (100.01, udp(sport=1)), (100.02, udp(sport=2)), (110.0, udp(sport=3)),
        (160.0, udp(sport=2)),  # a normal question behind that of the tunnel
        (170.01, udp(sport=3)),  # the tunnel's behind a normal one
        (171.0, udp(sport=4)),
    ]  # fmt: skip
    capture = BytesIO(pcap([packet for _, packet in packets], times=[time for time, _ in packets]))
    flows = FlowSampler(fields="raw").flows(capture)
    kinds, _ = _testbed.truth_of(flows, path)
    assert dict(zip(flows.src_port.tolist(), kinds.tolist(), strict=True)) == {1: "tunnel", 2: "?", 3: "?", 4: ""}


def test_flows_split_by_direction_are_refused():
    with pytest.raises(ValueError, match="bidirectional=True"):
        load_testbed(sampler=FlowSampler(bidirectional=False))


# The scripts that made it.


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return lambda name: runpy.run_path(str(SCRIPTS / name))


def test_cutting_keeps_the_beginnings_of_flows(script, tmp_path):
    pack = script("pack.py")
    rng = np.random.default_rng(0)
    packets, times, now = [], [], 0.0
    for _ in range(3000):
        now += float(rng.choice([0.01, 0.01, 0.01, 200.0], p=[0.4, 0.3, 0.295, 0.005]))
        flags = str(rng.choice(["S", "SA", "A", "PA", "FA", "R"], p=[0.1, 0.1, 0.4, 0.3, 0.07, 0.03]))
        ends = [("10.0.0.1", 1000 + int(rng.integers(20))), ("10.0.0.2", 80)]
        (src, sport), (dst, dport) = ends if rng.random() < 0.5 else ends[::-1]
        packets.append(tcp(sport, dport, flags, rng.bytes(int(rng.integers(0, 400))), src, dst))
        times.append(now)
    whole, short = tmp_path / "whole.pcap", tmp_path / "short.pcap"
    whole.write_bytes(pcap(packets, times=times))
    short.write_bytes(pack["cut"](whole.read_bytes()))
    assert short.stat().st_size < whole.stat().st_size / 2
    assert pack["check_same_flows"](whole, short) > 100
    damaged = tmp_path / "damaged.pcap"
    damaged.write_bytes(pcap(packets[:-30], times=times[:-30]))
    with pytest.raises(ValueError, match="has other flows"):
        pack["check_same_flows"](whole, damaged)


def test_header_fields_do_not_separate_what_the_table_says_they_do_not(script, testbed):
    confounds = script("confounds.py")
    for kind in KINDS - {"port_scan", "beacon_tcp"}:  # these go to ports that nobody else uses
        abnormal = testbed.attack == kind
        ports = np.unique(testbed.flows_test.dst_port[abnormal])
        rows = abnormal | ((testbed.attack == "") & np.isin(testbed.flows_test.dst_port, ports))
        fields = confounds["header_fields"](testbed.X_test[rows], 1)
        assert 0.3 < confounds["tree_auc"](fields, abnormal[rows]) < 0.7


def test_a_shortcut_would_be_found(script, testbed):
    confounds = script("confounds.py")
    X = testbed.X_test.copy()
    abnormal = testbed.attack == "web_guessing"
    X[abnormal, 22] = 128
    assert confounds["tree_auc"](confounds["header_fields"](X, 1), abnormal) > 0.99


def test_building_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "file").touch()
    build = [sys.executable, str(SCRIPTS / "build.py"), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not empty" in done.stderr


def test_a_route_out_is_refused(script, monkeypatch):
    network = script("network.py")

    def routed(command, **options):
        return subprocess.CompletedProcess(command, 0, stdout='[{"dst":"192.0.2.1","gateway":"10.0.0.1","dev":"eth0"}]')

    monkeypatch.setattr(subprocess, "run", routed)
    with pytest.raises(network["RouteOutError"], match=r"10\.0\.0\.1"):
        network["check_no_route_out"]([])
    for message, sealed in (("RTNETLINK answers: Network is unreachable", True), ("ip: not found", False)):
        failed = subprocess.CompletedProcess([], 2, stdout="", stderr=message)
        monkeypatch.setattr(subprocess, "run", lambda command, failed=failed, **_: failed)
        if sealed:
            network["check_no_route_out"]([])
        else:
            with pytest.raises(network["RouteOutError"], match="cannot be told"):
                network["check_no_route_out"]([])


def test_packages_and_programs_are_listed():
    packages = (SCRIPTS / "packages.txt").read_text().split()
    assert packages == sorted(set(packages))
    assert len(packages) > 30


def test_captures_are_packed_pcap_without_names_of_the_machine():
    for path in BUNDLED.rglob("*.xz"):
        data = lzma.decompress(path.read_bytes())
        assert data[:4] == b"\xd4\xc3\xb2\xa1"
        assert not re.search(rb"/(work|root)/|EHLO vm|Linux vm", data)
