"""FlowSampler as a scikit-learn transformer: shapes, names, labels, output containers, parameters."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace

import joblib
import numpy as np
import pytest
from captures import pcap, tcp, udp
from scapy.layers.l2 import ARP, Ether
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from sklearn_docids import CaptureError, CaptureWarning, FlowSampler
from sklearn_docids.capture import folders, stored
from sklearn_docids.capture.table import COLUMNS, FlowTable


@pytest.fixture
def captures(write):
    return [write(pcap([tcp(sport=s) for s in range(1, n)]), f"{n}.pcap") for n in (4, 6)]


def test_rows_are_bytes_in_order_of_capture_then_of_first_packet(captures):
    X = FlowSampler().transform(captures)
    assert (X.shape, X.dtype) == ((8, 320), np.uint8)
    assert X[:, 35].tolist() == [1, 2, 3, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("source", ["path", "str", "bytes", "file", "list", "tuple", "array"])
def test_every_kind_of_input_gives_the_same_rows(captures, source):
    path = captures[1]
    given = {
        "path": path, "str": str(path), "bytes": str(path).encode(), "file": io.BytesIO(path.read_bytes()),
        "list": [path], "tuple": (path,), "array": np.array([str(path)], dtype=object),
    }[source]  # fmt: skip
    assert (FlowSampler().transform(given) == FlowSampler().transform(path)).all()


def test_no_method_needs_fit_and_clone_keeps_the_parameters(captures):
    sampler = clone(FlowSampler(2, 40, random_state=1))
    assert sampler.transform(captures).shape == (8, 80)
    assert sampler.fit(captures).get_params() == FlowSampler(2, 40, random_state=1).get_params()


@pytest.mark.filterwarnings("ignore:Can't test estimator:sklearn.exceptions.SkipTestWarning")
def test_estimator_checks_for_estimators_that_take_no_array():
    results = check_estimator(FlowSampler(), on_fail=None, on_skip=None)
    assert [result["status"] for result in results] == ["passed"]


def test_column_names_say_packet_and_byte():
    names = FlowSampler().get_feature_names_out()
    assert (len(names), names[0], names[81], names[-1]) == (320, "p0_b00", "p1_b01", "p3_b79")


def test_pandas_output_has_one_row_per_flow(captures):
    pandas = pytest.importorskip("pandas")
    sampler = FlowSampler(random_state=0).set_output(transform="pandas")
    for given in (captures, pandas.Series(captures, index=[7, 8])):
        for frame in (sampler.transform(given), sampler.fit_transform(given)):
            assert frame.shape == (8, 320)
            assert frame.columns[0] == "p0_b00"
            assert (frame.dtypes == np.uint8).all()


def test_sample_takes_a_label_per_capture(captures):
    X, y, groups = FlowSampler().sample(captures, ["dns", "tls"])
    assert y.tolist() == ["dns"] * 3 + ["tls"] * 5
    assert groups.tolist() == [0] * 3 + [1] * 5
    assert len(X) == 8


def test_sample_takes_an_array_per_capture(captures):
    _, y, _ = FlowSampler().sample(captures, [[1, 2, 3], np.arange(5)])
    assert y.tolist() == [1, 2, 3, 0, 1, 2, 3, 4]


def test_sample_takes_a_function_of_the_flow_table(captures):
    _, y, _ = FlowSampler().sample(captures, lambda flows: flows.src_port % 2)
    assert y.tolist() == [1, 0, 1, 1, 0, 1, 0, 1]


def test_sample_without_labels_returns_none(captures):
    assert FlowSampler().sample(captures)[1] is None


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["dns"], "1 entries for 2 captures"),
        ([[1, 2], np.arange(5)], "2 labels for the 3 flows of .*4.pcap"),
        (lambda flows: flows.src_port[1:], "shape"),
        (1, "y must be a list"),
        ("normal", "y must be a list"),
    ],
)
def test_labels_that_do_not_fit_are_named(captures, y, message):
    with pytest.raises(ValueError, match=message):
        FlowSampler().sample(captures, y)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_packets": 0}, "'n_packets' parameter"),
        ({"n_bytes": 70_000}, "'n_bytes' parameter"),
        ({"idle_timeout": 0}, "'idle_timeout' parameter"),
        ({"on_error": "ignore"}, "'on_error' parameter"),
        ({"protocols": ("icmp",)}, "protocols must name"),
        ({"protocols": ()}, "protocols must name"),
        ({"max_live_flows": 0}, "'max_live_flows' parameter"),
        ({"random_state": "x"}, "'random_state' parameter"),
    ],
)
def test_a_wrong_parameter_is_named(captures, parameters, message):
    for method in ("fit", "transform", "flows", "sample"):
        with pytest.raises(ValueError, match=message):
            getattr(FlowSampler(**parameters), method)(captures)


def test_an_empty_list_raises():
    with pytest.raises(ValueError, match="empty list"):
        FlowSampler().transform([])


def test_counters_are_those_of_the_last_call(captures):
    sampler = FlowSampler()
    sampler.flows(captures)
    assert [c["packets"] for c in sampler.counters_] == [3, 5]
    sampler.transform(captures[0])
    assert [c["flows"] for c in sampler.counters_] == [3]


def test_verbose_prints_a_line_per_capture(captures, capsys):
    FlowSampler(verbose=1).transform(captures)
    out = capsys.readouterr().out.splitlines()
    assert [line.split(": ", 1)[1] for line in out] == [
        "3 packets, 0 ignored, 3 flows",
        "5 packets, 0 ignored, 5 flows",
    ]


def test_verbose_2_prints_every_tenth_of_a_long_capture(write, capsys):
    FlowSampler(verbose=2).transform(write(pcap([bytes(udp())] * 200_000)))
    out = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split("%")[0][0] for line in out[:9]] == list("123456789")
    assert out[-1].endswith(": 200000 packets, 0 ignored, 1 flow")


def test_the_flow_table_has_the_columns_of_the_contract(captures):
    flows = FlowSampler().flows(captures)
    assert all(len(flows[name]) == 8 for name in COLUMNS)
    assert all((flows[name] == getattr(flows, name)).all() for name in COLUMNS)
    with pytest.raises(KeyError):
        flows["nothing"]
    with pytest.raises(AttributeError, match="nothing"):
        _ = flows.nothing


def test_a_mask_selects_flows(captures):
    flows = FlowSampler().flows(captures)
    assert flows[flows.src_port > 3].src_port.tolist() == [4, 5]
    assert flows[-1].src_port.tolist() == [5]
    assert flows[2:5].capture.tolist() == [0, 1, 1]


def test_to_pandas_has_a_row_per_flow_and_real_times(captures):
    pandas = pytest.importorskip("pandas")
    frame = FlowSampler().flows(captures).to_pandas()
    assert list(frame.columns) == list(COLUMNS)
    assert frame["time_first"][1] == pandas.Timestamp("1970-01-01 00:00:01", tz="UTC")


def test_write_puts_the_flows_on_disk_as_flows_returns_them(captures, tmp_path):
    sampler = FlowSampler(fields="portable")
    flows = sampler.flows(captures)
    counters = sampler.write(captures, tmp_path / "out")
    assert (np.load(tmp_path / "out" / "X.npy") == flows.X).all()
    assert (np.load(tmp_path / "out" / "flows.npy")["src_port"] == flows.src_port).all()
    assert (np.load(tmp_path / "out" / "kept_bytes.npy") == flows.kept_bytes).all()
    described = json.loads((tmp_path / "out" / "captures.json").read_text())
    assert [d["flows"] for d in described] == [3, 5]
    assert counters == flows.counters


def test_write_finishes_flows_out_of_order_into_their_rows(write, tmp_path):
    # The first flow lives longest; the others idle out around it.
    times = np.arange(400) * 50.0
    path = write(pcap([udp(sport=1 if i % 2 == 0 else i) for i in range(400)], times=times))
    FlowSampler().write(path, tmp_path / "X.npy")
    X = np.load(tmp_path / "X.npy")
    assert (FlowSampler().transform(path) == X).all()
    assert len(X) == 200


def test_write_of_no_flows_is_an_empty_array(write, tmp_path):
    FlowSampler().write(write(pcap([])), tmp_path / "X.npy")
    assert np.load(tmp_path / "X.npy").shape == (0, 320)


def test_write_leaves_no_partial_file_when_a_capture_is_refused(write, tmp_path):
    with pytest.raises(ValueError, match="not a capture"):
        FlowSampler().write(write(b"nothing"), tmp_path / "X.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["capture.pcap"]


@pytest.mark.parametrize("n_jobs", [1, 2, 8])
def test_the_number_of_threads_changes_neither_rows_nor_files(write, tmp_path, n_jobs):
    paths = [write(pcap([udp(sport=1 + i % (7 * k)) for i in range(300)]), f"{k}.pcap") for k in range(1, 8)]
    paths.insert(2, write(b"nothing", "bad.pcap"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptureWarning)
        one, many = FlowSampler().flows(paths), FlowSampler(n_jobs=n_jobs).flows(paths)
        FlowSampler(n_jobs=n_jobs).write(paths, tmp_path / "out")
    written = FlowTable.load(tmp_path / "out")
    for flows in (many, written):
        assert (flows.X == one.X).all()
        assert (flows.rows.records == one.rows.records).all()
        assert (flows.capture == one.capture).all()
        assert flows.counters == one.counters
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("n_jobs", [1, 4])
def test_the_first_error_in_order_is_raised_and_nothing_is_left(write, tmp_path, n_jobs):
    big = write(pcap([bytes(udp())] * 50_000), "big.pcap")
    bad = [write(b"nothing", f"bad{i}.pcap") for i in range(3)]
    sampler = FlowSampler(n_jobs=n_jobs, on_error="raise")
    for _ in range(5):
        with pytest.raises(CaptureError, match=r"bad0.pcap"):
            sampler.write([big, *bad, big, tmp_path / "missing"], tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []
        with pytest.raises(CaptureError, match=r"bad0.pcap"):
            sampler.flows([big, *bad])


def test_a_folder_is_no_goal_for_an_array(captures, tmp_path):
    (tmp_path / "X.npy").mkdir()
    with pytest.raises(IsADirectoryError, match=r"X.npy is a folder"):
        FlowSampler().write(captures, tmp_path / "X.npy")


def test_live_flows_on_disk_leave_their_rows_to_be_filled_later(write, tmp_path):
    # Every third flow lives to the end, the others idle out long before: nearly every write has gaps.
    packets, times = [], []
    for i in range(30_000):
        packets.append(i + 1)
        times.append(i * 0.05)
    for i in range(0, 30_000, 3):
        packets.append(i + 1)
        times.append(1500.0)
    header = bytes(udp())
    capture = pcap([header[:26] + n.to_bytes(4, "big") + header[30:] for n in packets], times=times)
    path = write(capture)
    sampler = FlowSampler(idle_timeout=1000.0)
    sampler.write(path, tmp_path / "out")
    written, flows = FlowTable.load(tmp_path / "out"), sampler.flows(path)
    assert (written.X == flows.X).all()
    assert (written.rows.records == flows.rows.records).all()


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_saved_table_loads_as_it_was(captures, tmp_path, suffix):
    flows = FlowSampler(fields="raw").flows(captures)
    path = tmp_path / f"flows{suffix}"
    for table in (flows, flows[::2], flows[:0]):
        table.save(path)
        loaded = FlowTable.load(path)
        assert (loaded.rows.records == table.rows.records).all()
        assert (loaded.X == table.X).all()
        assert (loaded.kept_bytes == table.kept_bytes).all()
        assert (loaded.payload_lengths == table.payload_lengths).all()
        assert all((loaded[name] == table[name]).all() for name in COLUMNS)
        assert (loaded.captures, loaded.counters) == (table.captures, table.counters)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("flows")] == [path.name]


def test_a_parquet_file_is_read_by_pandas(captures, tmp_path):
    pandas = pytest.importorskip("pandas")
    flows = FlowSampler(fields="raw").flows(captures)
    flows.save(tmp_path / "flows.parquet")
    frame = pandas.read_parquet(tmp_path / "flows.parquet")
    assert frame["src_ip"].tolist() == flows.src_ip.tolist()
    assert (np.frombuffer(b"".join(frame["X"]), np.uint8).reshape(flows.X.shape) == flows.X).all()
    assert str(frame["time_first"].dtype) == "datetime64[ns, UTC]"


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_what_is_no_flow_table_is_refused(captures, tmp_path, suffix):
    path = tmp_path / f"flows{suffix}"
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match=r"flows|Parquet|parquet"):
        FlowTable.load(path)
    flows = FlowSampler().flows(captures)
    flows.captures = flows.captures[:1]
    flows.save(path)
    with pytest.raises(ValueError, match="no flow table: its parts do not fit together"):
        FlowTable.load(path)
    with pytest.raises(ValueError, match=r"saved as .npz or .parquet"):
        flows.save(tmp_path / "flows.csv")


def test_an_array_file_of_another_kind_is_no_flow_table(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="no flow table"):
        FlowTable.load(tmp_path / "other.npz")
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, records=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"pickled.npz: no flow table: it is no file of arrays"):
        FlowTable.load(pickled)
    (tmp_path / "empty.npz").touch()
    with pytest.raises(ValueError, match=r"empty.npz: no flow table"):
        FlowTable.load(tmp_path / "empty.npz")


@pytest.mark.parametrize(
    ("column", "value"),
    [("ip_version", 9), ("protocol", 1), ("src_low", 2**40), ("dst_high", 1), ("link_type", 147)],
    ids=str,
)
def test_flows_that_cannot_be_are_not_loaded(captures, tmp_path, column, value):
    flows = FlowSampler().flows(captures)
    flows.rows.records[column] = value
    flows.save(tmp_path / "flows.npz")
    with pytest.raises(ValueError, match=r"flows.npz: no flow table: it holds"):
        FlowTable.load(tmp_path / "flows.npz")


def test_truth_values_are_0_or_1(captures, tmp_path):
    flows = FlowSampler().flows(captures)
    flows.rows.records["truncated"].view(np.uint8)[-1] = 2
    flows.save(tmp_path / "flows.npz")
    with pytest.raises(ValueError, match=r"flows.npz: no flow table: it holds truth values other than 0 and 1"):
        FlowTable.load(tmp_path / "flows.npz")


def test_records_are_checked_to_the_last(captures, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RECORDS_AT_ONCE", 3)
    flows = FlowSampler().flows(captures)
    flows.rows.records["protocol"][-1] = 1
    flows.save(tmp_path / "flows.npz")
    with pytest.raises(ValueError, match=r"it holds flows that are not TCP or UDP over IP"):
        FlowTable.load(tmp_path / "flows.npz")


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ""])
def test_more_bytes_than_a_row_has_room_for_are_not_loaded(captures, tmp_path, suffix):
    flows, path = FlowSampler().flows(captures), tmp_path / f"flows{suffix}"
    flows.rows.kept_bytes[-1, -1] = 81
    if suffix:
        flows.save(path)
    else:
        FlowSampler().write(captures, path)
        np.save(path / "kept_bytes.npy", flows.rows.kept_bytes)
        folders.seal(path)
    with pytest.raises(ValueError, match=r"no flow table: kept_bytes holds 81, but a packet has room for 80 bytes"):
        FlowTable.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: replace(rows, X=rows.X[:, :0]),
        lambda rows: replace(rows, kept_bytes=rows.kept_bytes[:, :0]),
        lambda rows: replace(rows, X=rows.X[:, :-1].copy()),
        lambda rows: replace(rows, X=rows.X.copy("F")),
        lambda rows: replace(rows, kept_bytes=rows.kept_bytes.astype(np.int64)),
        lambda rows: replace(rows, records=rows.records[1:]),
        lambda rows: replace(rows, payload_lengths=rows.payload_lengths[:, 1:].copy()),
        lambda rows: replace(rows, payload_lengths=rows.payload_lengths.astype(np.int64)),
    ],
    ids=[
        "no bytes",
        "no packets",
        "cut packets",
        "columns first",
        "other type",
        "fewer records",
        "fewer lengths",
        "longer lengths",
    ],
)
def test_arrays_of_other_shapes_types_or_order_are_not_loaded(captures, tmp_path, change):
    flows = FlowSampler().flows(captures)
    described = json.dumps(
        {"captures": flows.captures, "counters": flows.counters, "ignored": flows.ignored, "layout": flows.layout}
    ).encode()
    rows = change(flows.rows)
    np.savez(tmp_path / "flows.npz", **vars(rows), capture=flows.capture, described=np.frombuffer(described, np.uint8))
    with pytest.raises(ValueError, match=r"flows.npz: no flow table: its parts do not fit together"):
        FlowTable.load(tmp_path / "flows.npz")


@pytest.mark.parametrize("described", [{"captures": [1, 2]}, {"counters": [3, 4]}], ids=str)
def test_names_are_text_and_counters_are_mappings(captures, tmp_path, described):
    flows = FlowSampler().flows(captures)
    vars(flows).update(described)
    flows.save(tmp_path / "flows.npz")
    with pytest.raises(ValueError, match=r"flows.npz: no flow table: its parts do not fit together"):
        FlowTable.load(tmp_path / "flows.npz")


@pytest.mark.parametrize(
    ("column", "value"), [("src_port", 70_000), ("src_port", -1), ("row", None), ("src_ip", "::1"), ("src_ip", "x")]
)
def test_a_parquet_file_with_impossible_values_is_not_loaded(captures, tmp_path, column, value):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "flows.parquet"
    FlowSampler().flows(captures).save(path)
    table = parquet.read_table(path)
    at = table.schema.get_field_index(column)
    wrong = [value, *table[column].to_pylist()[1:]]
    parquet.write_table(table.set_column(at, column, [wrong]), path)
    with pytest.raises(ValueError, match=r"flows.parquet: no flow table"):
        FlowTable.load(path)


def test_a_compressed_table_is_refused_before_it_is_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", X=np.zeros(10**7, np.uint8))
    with pytest.raises(ValueError, match="it is compressed"):
        FlowTable.load(tmp_path / "bomb.npz")


@pytest.mark.parametrize("n_flows", [10**11, -1, 5.0, "5"])
def test_numbers_of_flows_that_do_not_fit_are_refused(captures, tmp_path, n_flows):
    FlowSampler().write(captures, tmp_path / "out")
    (tmp_path / "out" / "captures.json").write_text(json.dumps([{"name": "a", "flows": n_flows}]))
    with pytest.raises(ValueError, match=r"out: no flow table: captures.json has other numbers"):
        FlowTable.load(tmp_path / "out")


def test_a_folder_that_write_did_not_write_is_refused_by_name(captures, tmp_path):
    FlowSampler().write(captures, tmp_path / "out")
    assert len(FlowTable.load(os.fsencode(tmp_path / "out"))) == 8
    (tmp_path / "out" / "captures.json").write_text("[{]")
    with pytest.raises(ValueError, match=r"out: no flow table"):
        FlowTable.load(tmp_path / "out")


def test_a_stream_gives_a_flow_with_its_nth_packet_and_absorbs_later_ones(write):
    packets = [udp()] * 6 + [udp(sport=7)]
    tables = list(FlowSampler(n_packets=2).iter_flows(write(pcap(packets))))
    flows = [(int(t.src_port[i]), int(t.packets_forward[i])) for t in tables for i in range(len(t))]
    assert flows == [(1000, 2), (7, 1)]
    assert all(isinstance(table, FlowTable) for table in tables)


def test_a_stream_gives_a_flow_before_its_source_ends():
    class Endless(io.RawIOBase):
        """Yields one record at a time; reading on after the fifth fails the test."""

        def __init__(self):
            capture = pcap([udp()] * 5)
            self.parts = [capture[:24]] + [capture[24 + 58 * i : 82 + 58 * i] for i in range(5)]

        def readinto(self, buffer):
            part = self.parts.pop(0)
            buffer[: len(part)] = part
            return len(part)

    stream = FlowSampler(n_packets=2).iter_flows(Endless())
    assert next(stream).packets_forward.tolist() == [2]


def test_a_tombstone_ends_with_the_idle_timeout(write):
    path = write(pcap([udp()] * 5, times=[0.0, 1.0, 2.0, 500.0, 501.0]))
    tables = list(FlowSampler(n_packets=2).iter_flows(path))
    assert [n for t in tables for n in t.packets_forward] == [2, 2]


def test_streamed_rows_are_those_of_the_whole_capture(write):
    path = write(pcap([udp(sport=i % 50, payload=bytes([i % 7])) for i in range(500)]))
    streamed = np.concatenate([t.X for t in FlowSampler().iter_flows(path)])
    assert sorted(map(bytes, streamed)) == sorted(map(bytes, FlowSampler().transform(path)))


def test_a_stream_of_ended_flows_has_the_rows_and_counts_of_the_whole_in_the_order_of_their_ends(write):
    # The first flow lasts until the end; the second and third are one packet each, and end by the timeout.
    packets = [udp(sport=1), udp(sport=2), *[udp(sport=1)] * 6, udp(sport=3), *[udp(sport=1)] * 3]
    path = write(pcap(packets, times=np.arange(12) * 50.0))
    tables = list(FlowSampler().iter_flows(path, early=False))
    assert [port for table in tables for port in table.src_port] == [2, 3, 1]
    whole = FlowSampler().flows(path)
    order = np.concatenate([table.rows.records["row"] for table in tables]).argsort()
    for name in ("X", *COLUMNS):
        streamed = np.concatenate([getattr(table, name) for table in tables])
        assert (streamed[order] == getattr(whole, name)).all()
    assert tables[-1].packets_forward.tolist() == [10]
    assert tables[-1].counters == whole.counters


def test_flows_that_all_end_with_their_stream_come_in_parts(write):
    path = write(
        pcap([udp(sport=1 + i % 50_000, dport=1 + i // 50_000) for i in range(20_000)], times=np.zeros(20_000))
    )
    assert [len(table) for table in FlowSampler().iter_flows(path, early=False)] == [8192, 8192, 3616]


def test_a_capture_of_which_most_is_ignored_warns_with_the_reasons(write):
    def captured(n_ignored, n_flows):
        return write(pcap([*[Ether() / ARP()] * n_ignored, *[udp(sport=1 + i) for i in range(n_flows)]]))

    with pytest.warns(CaptureWarning, match=r"100 packets, 51 ignored \(51 non ip\), 49 flows"):
        FlowSampler().flows(captured(51, 49))
    # Half of them, few packets, and what was asked for are no reason to warn.
    FlowSampler().flows(captured(50, 50))
    FlowSampler().flows(captured(99, 0))
    FlowSampler(protocols=["tcp"]).flows(captured(0, 200))
    FlowSampler(duplicate_window=1).flows(write(pcap([udp()] * 200)))


def test_ctrl_c_ends_the_threads_that_read_captures():
    class Pressed(io.RawIOBase):
        def readinto(self, buffer):
            os.kill(os.getpid(), signal.SIGINT)
            return 0

    class Endless(io.RawIOBase):
        def __init__(self):
            self.data = pcap([udp()])

        def readinto(self, buffer):
            time.sleep(0.01)
            part, self.data = self.data, pcap([udp()])[24:]
            buffer[: len(part)] = part
            return len(part)

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        FlowSampler(n_jobs=2, rotated=False).flows([Endless(), Pressed()])
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert len(list(FlowSampler().iter_flows(io.BytesIO(pcap([udp()]))))) == 1  # what comes later is not interrupted


def test_write_to_a_full_disk_raises_and_leaves_nothing(write, tmp_path):
    path = write(pcap([udp(sport=s) for s in range(1, 500)]))
    code = (
        "import resource, sys; from sklearn_docids import FlowSampler; import signal;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sampler = FlowSampler(); sampler.flows(sys.argv[1]);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "sampler.write(sys.argv[1], sys.argv[2])"
    )
    out = tmp_path / "X.npy"
    result = subprocess.run([sys.executable, "-c", code, path, out], capture_output=True, text=True)
    assert "OSError" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["capture.pcap"]


def test_scoring_touches_no_random_generator(captures):
    generator = np.random.RandomState(0)
    FlowSampler(random_state=generator).transform(captures)
    assert generator.randint(10**9) == np.random.RandomState(0).randint(10**9)


def test_open_files_are_refused_where_other_processes_read(captures):
    with joblib.parallel_config("loky", n_jobs=2):
        files = [io.BytesIO(path.read_bytes()) for path in captures]
        with pytest.raises(TypeError, match=r"BytesIO> is no path: shards, and workers of joblib"):
            FlowSampler().transform(files)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_cannot_be_written_to(write, name):
    flows = FlowSampler().flows(write(pcap([udp(), tcp()])))
    with pytest.raises(ValueError, match="read-only"):
        flows[name][:] = flows[name][::-1]


def test_captures_are_read_where_scapy_cannot_be_imported(write, tmp_path):
    path = write(pcap([udp(), tcp(), tcp(sport=7)]))
    code = (
        "import sys; sys.modules['scapy'] = None\n"
        "import sklearn_docids.cli, sklearn_docids.datasets, sklearn_docids.inspection\n"
        "from sklearn_docids import FlowSampler\n"
        f"path, sampler = {str(path)!r}, FlowSampler(fields='paper', random_state=0)\n"
        f"sampler.write(path, {str(tmp_path / 'X.npy')!r})\n"
        "print(len(sampler.fit_transform(path)), sum(map(len, sampler.iter_flows(path))))\n"
        "print(sampler.flows(path).dst_ip[0])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stderr, result.stdout) == ("", "3 3\n10.0.0.2\n")
