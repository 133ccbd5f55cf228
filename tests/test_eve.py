"""Alarms as lines for other tools: valid, one line each, with the numbers that were put in."""

import csv
import io
import json
import math
import os
import re
import resource
import signal
from collections import Counter

import numpy as np
import pytest
from eve_schema import SCHEMA, faults
from flagged import SECOND, alarm_of, flagged_flow

from sklearn_docids._alarms import eve
from sklearn_docids._alarms.eve import AlarmWriter, alert_line, flat_record, output_kind, stats_line
from sklearn_docids._alarms.zeek import ZeekConnections
from sklearn_docids.cli._tables import COLUMNS as FLOW_COLUMNS
from sklearn_docids.detectors import ViewReason

TIME = 1_700_000_000_123_456_789
REASONS = (ViewReason("novelty", 2e-4, "tcp/8443 was never a destination here"), ViewReason("requests", 0.01, "odd"))
HOSTILE_TEXTS = (
    "a\nb", "a\r\x00\x1b[2Jb", "\u2028\u2029\x85", '"},"alert":{}', "\\", "\udcff\udc80.pcap", "\ud800",
    "=cmd|' /C'!A1", "é漢\U0001f600", "</script><b>", "x" * 500, "",
)  # fmt: skip
EDGES = (0, -1, 1, -(2**63), 2**63 - 1, TIME, 253_402_300_799 * 10**6)


def line_of(alarm, **given):
    return json.loads(alert_line(alarm, **{"sensor": None, "interface": None, "model": "office.model"} | given))


def busy_alarm(**given):
    flagged = flagged_flow(
        -8.25, 3e-5, REASONS, "monday.pcap", -4.5, b"GET /x HTTP/1.1\r\n\x00", src="10.0.0.7", dst="10.9.9.9",
        src_port=50_123, dst_port=8443, time_first=TIME, time_last=TIME + 75 * SECOND, packets_forward=7,
        packets_backward=5, bytes_forward=900, bytes_backward=4800, tcp_flags_forward=0x1B, begin=1, end=1,
    )  # fmt: skip
    return alarm_of(flagged, **given)


def test_an_alert_says_all_that_is_known():
    alarm = busy_alarm(n_flows=10, n_reported=2, time_last=TIME + 60 * SECOND)
    line = line_of(alarm, sensor="sensor-1", zeek_uid="CAbc1")
    flow_id = line.pop("flow_id")
    assert 0 <= flow_id < 2**51
    assert line == {
        "timestamp": "2023-11-14T22:14:35.123456+0000",
        "event_type": "alert",
        "src_ip": "10.0.0.7",
        "src_port": 50_123,
        "dest_ip": "10.9.9.9",
        "dest_port": 8443,
        "proto": "TCP",
        "app_proto": "http",
        "community_id": alarm.most_abnormal.flow.community_id[0],
        "pcap_filename": "monday.pcap",
        "host": "sensor-1",
        "alert": {
            "action": "allowed",
            "gid": 1117,
            "signature_id": 2,
            "rev": 1,
            "signature": "DOCIDS abnormal channel, again",
            "category": "Network Anomaly",
            "severity": 1,
            "metadata": {"signature_severity": ["Critical"], "tag": ["docids", "anomaly", "channel"]},
            "context": {
                "incident": "00c0ffee00c0ffee",
                "level": "channel",
                "n_reported": 2,
                "n_flows": 10,
                "n_channels": 1,
                "time_first": "2023-11-14T22:13:20.123456+0000",
                "time_last": "2023-11-14T22:14:20.123456+0000",
                "score": -8.25,
                "threshold": -4.5,
                "p_value": 3e-5,
                "p_values": {"novelty": 2e-4, "requests": 0.01},
                "reasons": ["novelty: tcp/8443 was never a destination here", "requests: odd"],
                "model": "office.model",
                "request": r"'GET /x HTTP/1.1\r\n\x00'",
                "request_hex": b"GET /x HTTP/1.1\r\n\x00".hex(),
                "zeek_uid": "CAbc1",
            },
        },
        "flow": {
            "pkts_toserver": 7,
            "pkts_toclient": 5,
            "bytes_toserver": 900,
            "bytes_toclient": 4800,
            "start": "2023-11-14T22:13:20.123456+0000",
            "end": "2023-11-14T22:14:35.123456+0000",
            "age": 75,
            "state": "closed",
        },
    }


def test_an_alert_from_an_interface_names_it_and_no_file():
    line = line_of(busy_alarm(), interface="eth0")
    assert line["in_iface"] == "eth0"
    assert "pcap_filename" not in line
    assert "host" not in line


def hostile_alarm(rng):
    """Return an alarm of numbers at their edges and names that somebody chose."""

    def number():
        return float(rng.choice([math.nan, math.inf, -math.inf, -0.0, 5e-324, -1.7e308, rng.normal()]))

    def text():
        return str(rng.choice(np.array(HOSTILE_TEXTS, dtype=object)))

    first, last = (int(rng.choice(EDGES)) for _ in range(2))
    host = str(rng.choice(["0.0.0.0", "255.255.255.255", "::", "fd00::ffff:ffff:ffff:ffff", "::ffff:1.2.3.4"]))
    count = int(rng.choice([0, 1, 2**32 - 1]))
    flagged = flagged_flow(
        number(), number(), tuple(ViewReason(text(), number(), text()) for _ in range(rng.integers(4))), text(),
        number(), rng.integers(0, 256, rng.integers(0, 60), dtype=np.uint8).tobytes(), src=host, dst=host,
        src_port=int(rng.choice([0, 65_535])), dst_port=int(rng.choice([0, 53])), protocol=int(rng.choice([6, 17])),
        time_first=first, time_last=last, packets_forward=count, packets_backward=int(rng.choice([0, count])),
        bytes_forward=int(rng.choice([0, 2**63 - 1])), tcp_flags_forward=int(rng.integers(256)),
        begin=int(rng.integers(4)), end=int(rng.integers(5)),
    )  # fmt: skip
    level = str(rng.choice(["channel", "host"]))
    names = {"sensor": text(), "interface": text() if rng.random() < 0.5 else None, "model": text()}
    return alarm_of(flagged, level, count + 1, 1 + count // 2, int(rng.integers(3)), first, last), names


def null_if_unusual(number):
    return number if math.isfinite(number) else None


def test_hostile_alerts_are_valid_lines_with_their_numbers():
    rng = np.random.default_rng(17)
    identifiers = Counter()
    for number in range(2000):
        alarm, names = hostile_alarm(rng)
        text = alert_line(alarm, zeek_uid=str(number), **names)
        assert text.isascii()
        assert text.isprintable()
        line = json.loads(text, parse_constant=pytest.fail)
        assert faults(line) == []
        record, flagged = alarm.most_abnormal.flow.rows.records[0], alarm.most_abnormal
        flow, context = line["flow"], line["alert"]["context"]
        assert (line["src_port"], line["dest_port"]) == (record["src_port"], record["dst_port"])
        counts = [flow[f"{what}_{where}"] for what in ("pkts", "bytes") for where in ("toserver", "toclient")]
        assert counts == [
            record[f"{what}_{where}"] for what in ("packets", "bytes") for where in ("forward", "backward")
        ]
        assert (context["n_flows"], context["n_channels"]) == (alarm.n_flows, alarm.n_channels)
        for name in ("score", "threshold", "p_value"):
            assert context[name] == null_if_unusual(getattr(flagged, name))
        assert context["p_values"] == {
            eve.printable(reason.view): null_if_unusual(reason.p_value) for reason in flagged.reasons
        }
        identifiers[line["alert"]["signature_id"], line["alert"]["severity"]] += 1
    assert len(identifiers) == 4 * 3


def test_a_library_finds_the_lines_valid_too():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    rng = np.random.default_rng(3)
    lines = [alert_line(alarm, **names) for alarm, names in (hostile_alarm(rng) for _ in range(300))]
    lines.append(alert_line(busy_alarm(), sensor="a", interface="b", model="c", zeek_uid="C1"))
    lines.append(stats_line(dict.fromkeys(eve.PLACES, 3), time_ns=TIME, sensor="a", interface="b"))
    assert [error.message for line in lines for error in validator.iter_errors(json.loads(line))] == []
    wrong = json.loads(lines[-2])
    for spoil in (
        lambda line: line.update(docids={}),
        lambda line: line.update(src_port="443"),
        lambda line: line.update(timestamp="2023-11-14T22:14:35.123456Z"),
        lambda line: line["alert"].update(score=1),
        lambda line: line["flow"].update(age=1.5),
        lambda line: line["alert"]["metadata"].update(tag=[]),
        lambda line: line.pop("event_type"),
    ):
        spoiled = json.loads(json.dumps(wrong))
        spoil(spoiled)
        assert len(faults(spoiled)) == len([*validator.iter_errors(spoiled)]) == 1


@pytest.mark.parametrize(
    ("p_value", "score", "threshold", "severity"),
    [
        (9.9e-5, -4.1, -4, 1), (1e-4, -4.1, -4, 2), (9.9e-4, -4.1, -4, 2), (1e-3, -4.1, -4, 3), (0.0, -4.1, -4, 1),
        (1e-3, -8, -4, 1), (9e-5, -5, -4, 1), (1e-4, -8, -4, 1),
        (math.nan, -8, -4, 1), (math.nan, -7.9, -4, 2), (math.nan, -5, -4, 2), (math.nan, -4.9, -4, 3),
        (math.nan, -1, 0, 1), (math.nan, -math.inf, -4, 1), (math.nan, math.nan, -4, 3), (math.nan, 1.0, 2.0, 2),
    ],
)  # fmt: skip
def test_severity_is_the_higher_one_by_p_value_and_by_how_far_the_score_is_beyond_the_threshold(
    p_value, score, threshold, severity
):
    alarm = alarm_of(flagged_flow(score, p_value, threshold=threshold))
    assert line_of(alarm)["alert"]["severity"] == severity


@pytest.mark.parametrize(
    ("level", "n_reported", "signature_id"),
    [("channel", 0, 1), ("channel", 1, 1), ("channel", 2, 2), ("host", 1, 3), ("host", 5, 4)],
)
def test_identifiers_are_those_of_the_table(level, n_reported, signature_id):
    alert = line_of(busy_alarm(level=level, n_reported=n_reported))["alert"]
    assert (alert["gid"], alert["signature_id"]) == (1117, signature_id)
    assert re.search(rf"^{signature_id} +{level} ", eve.__doc__, re.MULTILINE)


def test_a_flow_has_one_id_however_often_it_is_reported_and_another_flow_another():
    alarms = [busy_alarm(), busy_alarm(n_flows=10, n_reported=2)]
    assert len({line_of(alarm)["flow_id"] for alarm in alarms}) == 1
    others = [flagged_flow(time_first=time, src_port=port) for time in range(30) for port in range(30)]
    assert len({line_of(alarm_of(flagged))["flow_id"] for flagged in others}) == 900


@pytest.mark.parametrize(
    ("columns", "state"),
    [
        ({"end": 1}, "closed"),
        ({"end": 0, "packets_backward": 1, "tcp_flags_forward": 0x12}, "established"),
        ({"end": 2, "packets_backward": 1, "tcp_flags_forward": 0x02}, "new"),
        ({"end": 2, "packets_backward": 0, "tcp_flags_forward": 0x10}, "new"),
        ({"protocol": 17, "packets_backward": 3}, "established"),
        ({"protocol": 17, "packets_backward": 0}, "new"),
    ],
)
def test_states_are_those_of_suricata(columns, state):
    assert line_of(alarm_of(flagged_flow(**columns)))["flow"]["state"] == state


@pytest.mark.parametrize(
    ("request_", "app_proto"),
    [
        (b"GET / HTTP/1.1\r\nHost: a", "http"), (b"PROPFIND /x HTTP/1.0\r\n", "http"), (b"GET / HTTP/1.1", None),
        (b"GET /", None), (b"SSH-2.0-OpenSSH_9.2p1\r\n", "ssh"), (b"SSH-9", None), (b"", None), (b"\x16\x03", None),
        (bytes.fromhex("1603010200010001fc0303") + b"r" * 32, "tls"), (bytes.fromhex("1603030200020001fc0303"), None),
    ],
)  # fmt: skip
def test_only_a_protocol_that_is_certain_is_named(request_, app_proto):
    assert line_of(alarm_of(flagged_flow(request=request_))).get("app_proto") == app_proto
    assert "app_proto" not in line_of(alarm_of(flagged_flow(request=request_, protocol=17)))


def test_counters_are_where_suricata_has_them_and_all_in_flowints():
    counters = {"packets": 12, "kernel_drops": 3, "malformed": np.int64(2), "non_ip": 1, "alarms": 4, "flows_open": 7}
    text = stats_line(counters, time_ns=TIME, sensor="s\n1", interface="eth0")
    line = json.loads(text)
    assert faults(line) == []
    assert line == {
        "timestamp": "2023-11-14T22:13:20.123456+0000",
        "event_type": "stats",
        "stats": {
            "capture": {"kernel_drops": 3},
            "decoder": {"pkts": 12, "invalid": 2},
            "detect": {"alert": 4},
            "flow": {"active": 7},
        },
        "metadata": {"flowints": counters},
        "in_iface": "eth0",
        "host": r"s\n1",
    }
    every = json.loads(
        stats_line(dict.fromkeys([*eve.PLACES, *HOSTILE_TEXTS], 1), time_ns=0, sensor=None, interface=None)
    )
    assert faults(every) == []
    assert json.loads(stats_line({}, time_ns=0, sensor=None, interface=None))["stats"] == {}


def test_flat_records_are_alike_in_csv_and_json_lines(tmp_path):
    alarms = [busy_alarm(), alarm_of(flagged_flow(-math.inf, math.nan, capture="=1+\n\udcff"), "host", 12, 11)]
    for suffix in ("csv", "jsonl"):
        with AlarmWriter(str(tmp_path / f"alarms.{suffix}"), model="m") as writer:
            for alarm in alarms:
                writer.write(alarm)
            writer.write_stats({"packets": 1}, time_ns=0)
    lines = (tmp_path / "alarms.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert records == [flat_record(alarm) for alarm in alarms]
    assert records[0] == {
        "incident": "00c0ffee00c0ffee", "level": "channel", "n_reported": 1, "n_flows": 1, "n_channels": 1,
        "capture": "monday.pcap", "time_first": "2023-11-14T22:13:20.123456Z",
        "time_last": "2023-11-14T22:13:20.123456Z", "src_ip": "10.0.0.7", "src_port": 50_123, "dst_ip": "10.9.9.9",
        "dst_port": 8443, "protocol": "tcp", "packets_forward": 7, "packets_backward": 5, "bytes_forward": 900,
        "bytes_backward": 4800, "begin": "handshake", "end": "closed", "score": -8.25, "threshold": -4.5,
        "p_value": 3e-5, "reason": "novelty: tcp/8443 was never a destination here; requests: odd",
        "flow_time_first": "2023-11-14T22:13:20.123456Z", "flow_time_last": "2023-11-14T22:14:35.123456Z",
        "flow_id": line_of(alarms[0])["flow_id"], "community_id": alarms[0].most_abnormal.flow.community_id[0],
        "zeek_uid": None,
    }  # fmt: skip
    assert (records[1]["score"], records[1]["p_value"]) == (None, None)
    with open(tmp_path / "alarms.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [{name: "" if value is None else str(value) for name, value in record.items()} for record in records]
    expected[1]["capture"] = r"'=1+\n\udcff"
    assert rows == expected
    assert tuple(records[0]) == eve.COLUMNS
    assert set(FLOW_COLUMNS) - set(eve.COLUMNS) == {"duration", "verdict"}


def test_a_hostile_name_takes_one_line_of_every_kind(tmp_path):
    rng = np.random.default_rng(2)
    alarms = [hostile_alarm(rng)[0] for _ in range(60)]
    for suffix in ("csv", "jsonl", "json"):
        path = tmp_path / f"alarms.{suffix}"
        with AlarmWriter(str(path), model="m") as writer:
            for alarm in alarms:
                writer.write(alarm)
        text = path.read_bytes().decode()
        assert len(text.splitlines()) == len(alarms) + (suffix == "csv")
        assert text.count("\n") == len(text.splitlines())


def test_kinds_are_known_by_the_end_of_the_name():
    kinds = {"eve.json": "eve", "a.EVE": "eve", "b.jsonl": "jsonl", "b.ndjson": "jsonl", "dir.x/c.csv": "csv"}
    assert {name: output_kind(name) for name in kinds} == kinds
    for name in ("alarms", "alarms.parquet", "json"):
        with pytest.raises(ValueError, match=rf"{name} ends in none of \.csv, \.jsonl, \.ndjson, \.json, \.eve"):
            output_kind(name)


def test_lines_are_added_and_a_file_that_was_moved_away_is_made_anew(tmp_path):
    path = tmp_path / "alarms.csv"
    for _ in range(2):
        with AlarmWriter(str(path), model="m") as writer:
            writer.write(busy_alarm())
    assert len(path.read_text().splitlines()) == 3
    with AlarmWriter(str(path), model="m") as writer:
        writer.write(busy_alarm())
        path.rename(tmp_path / "alarms.csv.1")
        writer.reopen()
        writer.write(busy_alarm())
        writer.flush()
        assert len((tmp_path / "alarms.csv.1").read_text().splitlines()) == 4
        lines = path.read_text().splitlines()
        assert len(lines) == 2
        assert lines[0] == ",".join(eve.COLUMNS)


def test_nothing_is_written_before_a_flush_and_all_of_it_then(tmp_path):
    path = tmp_path / "eve.json"
    writer = AlarmWriter(str(path), model="m")
    writer.write(busy_alarm())
    writer.write_stats({"packets": 3}, time_ns=0)
    assert path.read_bytes() == b""
    writer.flush()
    assert [json.loads(line)["event_type"] for line in path.read_text().splitlines()] == ["alert", "stats"]
    writer.close()


def test_a_line_that_was_cut_off_does_not_take_the_next_one_with_it(tmp_path):
    path = tmp_path / "eve.json"
    path.write_text('{"timestamp":"2026-01-01T0')
    with AlarmWriter(str(path), model="m") as writer:
        writer.write(busy_alarm())
    torn, whole = path.read_text().splitlines()
    assert torn == '{"timestamp":"2026-01-01T0'
    assert faults(json.loads(whole)) == []


def test_a_full_disk_is_an_error_and_what_waits_is_written_later(tmp_path):
    path = tmp_path / "eve.json"
    writer = AlarmWriter(str(path), model="m")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        for _ in range(3):
            writer.write(busy_alarm())
        for _ in range(2):
            with pytest.raises(OSError, match="File too large"):
                writer.flush()
        assert path.stat().st_size == 1000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    writer.close()
    assert [faults(json.loads(line)) for line in path.read_text().splitlines()] == [[], [], []]


def test_where_no_new_file_can_be_made_the_old_one_stays_in_use(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    with AlarmWriter(str(folder / "eve.json"), model="m") as writer:
        folder.rename(tmp_path / "moved")
        with pytest.raises(FileNotFoundError):
            writer.reopen()
        writer.write(busy_alarm())
    assert len((tmp_path / "moved" / "eve.json").read_text().splitlines()) == 1


def test_alarms_go_to_standard_output_and_into_a_pipe(tmp_path, capfdbinary):
    with AlarmWriter("-", "eve", model="m") as writer:
        writer.write(busy_alarm())
    assert faults(json.loads(capfdbinary.readouterr().out)) == []
    print("still open")
    assert capfdbinary.readouterr().out == b"still open\n"
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with AlarmWriter(str(pipe), model="m") as writer:
        writer.write(busy_alarm())
        writer.flush()
        assert faults(json.load(io.BytesIO(os.read(reader, 65_536)))) == []
        os.close(reader)
        writer.write(busy_alarm())
        with pytest.raises(BrokenPipeError):
            writer.flush()
        writer._waiting.clear()


def test_connections_of_zeek_are_named_in_every_kind(tmp_path):
    log = tmp_path / "conn.log"
    connection = {"ts": TIME / 1e9, "uid": "CAbc1", "id.orig_h": "10.0.0.7", "id.orig_p": 50_123, "proto": "tcp"}
    log.write_text(json.dumps(connection | {"id.resp_h": "10.9.9.9", "id.resp_p": 8443, "duration": 75.0}))
    zeek = ZeekConnections(str(log))
    for suffix in ("csv", "jsonl", "json"):
        with AlarmWriter(str(tmp_path / f"a.{suffix}"), model="m", zeek=zeek) as writer:
            writer.write(busy_alarm())
            writer.write(alarm_of(flagged_flow()))
    lines = [json.loads(line) for line in (tmp_path / "a.json").read_text().splitlines()]
    assert [line["alert"]["context"].get("zeek_uid") for line in lines] == ["CAbc1", None]
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["zeek_uid"] for line in lines] == ["CAbc1", None]
    assert [line.rpartition(",")[2] for line in (tmp_path / "a.csv").read_text().splitlines()] == [
        "zeek_uid", "CAbc1", "",
    ]  # fmt: skip
