"""Connections of Zeek's log found for flows: in each of its formats, and damaged or made up by others."""

import gzip
import json

import numpy as np
import pytest
from flagged import SECOND, flow_table

from sklearn_docids._alarms.zeek import MAX_LINE, ZeekConnections

NAMES = ("ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "service", "duration", "history")
BEGIN = 1_700_000_000
PATH = "/logs/conn.log"


def connection(uid="CAbc1", ts=f"{BEGIN}.500000", duration="10.000000", **given):
    values = {"ts": ts, "uid": uid, "duration": duration, "service": "-", "history": "ShAD"}
    values |= {"id.orig_h": "10.0.0.1", "id.orig_p": "40000", "id.resp_h": "10.0.1.1", "id.resp_p": "443"}
    return values | {"proto": "tcp"} | given


def tsv(*connections, names=NAMES, separator="\t", spelled=r"\x09", unset="-"):
    lines = [f"#separator {spelled}", separator.join(("#set_separator", ",")), separator.join(("#unset_field", unset))]
    lines += [separator.join(("#path", "conn")), separator.join(("#fields", *names))]
    lines += [separator.join(values[name] for name in names) for values in connections]
    return "\n".join([*lines, separator.join(("#close", "2026-11-28")), ""]).encode()


def jsonl(*connections):
    return b"".join(json.dumps(values).encode() + b"\n" for values in connections)


def numbers(values):
    """Return a connection as Zeek's JSON has it: numbers are numbers, and what is unset is not there."""
    typed = {name: float(values[name]) for name in ("ts", "duration") if values[name] != "-"}
    typed |= {name: int(values[name]) for name in ("id.orig_p", "id.resp_p")}
    return {name: value for name, value in (values | typed).items() if value != "-"}


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "conn.log"
        path.write_bytes(content)
        return ZeekConnections(str(path))

    return read


def flow(first=0.5, last=None, **columns):
    last = first if last is None else last
    return flow_table([{"time_first": at(first), "time_last": at(last), **columns}])


def at(seconds):
    return BEGIN * SECOND + round(seconds * SECOND)


FORMATS = {
    "tsv": tsv,
    "gzip": lambda *connections: gzip.compress(tsv(*connections)),
    "other separator": lambda *connections: tsv(*connections, separator="|", spelled="|", unset="?"),
    "other fields": lambda *connections: tsv(*connections, names=("history", *reversed(NAMES[:-1]))),
    "json": lambda *connections: jsonl(*map(numbers, connections)),
    "json in gzip": lambda *connections: gzip.compress(jsonl(*map(numbers, connections))),
    "crlf": lambda *connections: tsv(*connections).replace(b"\n", b"\r\n"),
    "two logs in one file": lambda one, *more: tsv(one) + tsv(*more, names=tuple(reversed(NAMES))),
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_each_format_names_the_same_connections(read, write):
    found = read(
        write(
            connection("CTcp"),
            connection("CUdp", proto="udp"),
            connection("CSix", **{"id.orig_h": "fd00::1", "id.resp_h": "fd00::2"}),
            connection("CPing", proto="icmp", **{"id.orig_p": "8", "id.resp_p": "0"}),
        )
    )
    assert (found.n_connections, found.n_skipped) == (3, 1)
    assert found.uid(flow()) == "CTcp"
    assert found.uid(flow(protocol=17)) == "CUdp"
    assert found.uid(flow(src="fd00::1", dst="fd00::2")) == "CSix"
    assert found.uid(flow(src="fd00::1", dst="fd00::3")) is None
    assert found.uid(flow(dst_port=444)) is None
    assert found.uid(flow(src="10.0.0.2")) is None


@pytest.mark.parametrize("ts", [f"{BEGIN}.5", f"{BEGIN}500", "2023-11-14T22:13:20.500000Z", "2023-11-14T22:13:20.5"])
def test_times_are_seconds_or_milliseconds_or_iso_8601(read, ts):
    found = read(jsonl(connection("COne", ts, "0")))
    assert found.uid(flow(1.4)) == "COne"
    assert found.uid(flow(-0.4)) == "COne"
    assert found.uid(flow(1.6)) is found.uid(flow(-0.6)) is None


def test_either_side_may_be_the_source(read):
    found = read(tsv(connection()))
    turned = {"src": "10.0.1.1", "dst": "10.0.0.1", "src_port": 443, "dst_port": 40_000}
    assert found.uid(flow(**turned)) == "CAbc1"
    # Both addresses, and the ports of the other one.
    assert found.uid(flow(src="10.0.1.1", dst="10.0.0.1")) is None


def test_of_several_connections_it_is_the_one_that_overlaps(read):
    times = {"COne": 0, "CTwo": 100, "CThree": 130, "CFour": 500}
    found = read(tsv(*(connection(uid, f"{BEGIN + time}.0", "20.0") for uid, time in times.items())))
    assert [found.uid(flow(first)) for first in (0, 10, 20, 110, 140, 510)] == [
        "COne", "COne", "COne", "CTwo", "CThree", "CFour",
    ]  # fmt: skip
    assert found.uid(flow(115, 140)) == "CThree"  # it has more of it
    assert found.uid(flow(105, 132)) == "CTwo"
    assert found.uid(flow(60)) is found.uid(flow(200, 400)) is None
    assert found.uid(flow(99.5, 99.6)) == "CTwo"  # clocks differ
    assert found.uid(flow(120.6)) == "CTwo"


def test_a_connection_without_a_duration_is_one_packet(read):
    unset = connection(duration="-")
    for log in (tsv(unset), jsonl(numbers(unset)), tsv(unset, names=NAMES[:8])):
        found = read(log)
        assert found.uid(flow(1.4)) == "CAbc1"
        assert found.uid(flow(1.6)) is None


@pytest.mark.parametrize("time", [-(2**63), 2**63 - 1])
def test_a_flow_at_the_edge_of_time_is_of_no_connection(read, time):
    found = read(tsv(connection()))
    assert found.uid(flow_table([{"time_first": time}])) is None
    everything = flow_table([{"time_first": -(2**63), "time_last": 2**63 - 1}])
    assert found.uid(everything) == "CAbc1"


def test_names_are_those_of_a_search_through_all_connections(read):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(600):
        host, port, proto = rng.integers(1, 4), rng.integers(1, 3), str(rng.choice(["tcp", "udp"]))
        start = round(float(rng.uniform(0, 3000)), 6)
        rows.append((f"C{number}", f"10.0.0.{host}", int(port), proto, start, start + float(rng.integers(0, 30))))
    found = read(
        tsv(
            *(
                connection(
                    uid, f"{BEGIN + start:.6f}", f"{end - start:.6f}", proto=proto,
                    **{"id.orig_h": host, "id.resp_p": str(port)},
                )
                for uid, host, port, proto, start, end in rows
            )
        )
    )  # fmt: skip
    n_found = 0
    for _ in range(200):
        host, port, protocol = f"10.0.0.{rng.integers(1, 4)}", int(rng.integers(1, 3)), int(rng.choice([6, 17]))
        first = float(rng.uniform(0, 3000))
        last = first + float(rng.integers(0, 20))
        overlaps = {
            uid: (round(min(end, last) - max(start, first), 6), -abs(start - first))
            for uid, of_host, of_port, proto, start, end in rows
            if (of_host, of_port, {"tcp": 6, "udp": 17}[proto]) == (host, port, protocol)
        }
        best = max(overlaps, key=overlaps.get)
        expected = best if overlaps[best][0] >= -1 else None
        assert found.uid(flow(first, last, src=host, dst_port=port, protocol=protocol)) == expected
        n_found += expected is not None
    assert 50 < n_found < 200


def test_a_line_that_is_still_written_is_skipped(read):
    whole = tsv(connection("COne"), connection("CTwo", proto="udp")).removesuffix(b"#close\t2026-11-28\n")
    for log in (whole[:-30], jsonl(connection("COne")) + jsonl(connection())[:-9]):
        found = read(log)
        assert (found.n_connections, found.n_skipped) == (1, 1)
        assert found.uid(flow()) == "COne"
    assert read(whole[:-1]).n_connections == 2


@pytest.mark.parametrize("log", [b"", tsv(), b"\n\n", gzip.compress(b"", mtime=0)])
def test_a_log_without_connections_names_none(read, log):
    found = read(log)
    assert found.n_connections == 0
    assert found.uid(flow()) is None


HOSTILE = {
    "no header": (b"1.0\tC1\t10.0.0.1\n", "line 1: neither JSON nor behind a #fields line"),
    "other log": (tsv(connection(), names=("ts", "uid", "proto")), "line 5: the log has no field id.orig_h, id.orig_p"),
    "missing fields": (tsv(connection()) + b"1.0\tC1\n", "line 8: 2 fields, and #fields names 10"),
    "binary": (bytes(range(256)) * 40 + b"\n", "line 1: neither JSON"),
    "binary without lines": (b"\x00" * 5000, "line 1: neither JSON"),
    "huge line": (tsv() + b"x" * (MAX_LINE + 1), "line 7: longer than 1,048,576 bytes"),
    "huge json": (jsonl(connection()) + b'{"ts":' + b"[" * MAX_LINE, "line 2: longer than"),
    "deep json": (b'{"ts":' + b"[" * 200_000 + b"\n", "line 1: "),
    "torn json": (jsonl(connection()) + b'{"ts": 1\n' + jsonl(connection()), "line 2: no JSON: "),
    "json list": (jsonl({}), "line 1: no ts, uid, id.orig_h"),
    "uid": (tsv(connection("C 1\x1b[31m")), r"line 6: uid is 'C 1\\x1b\[31m', which Zeek never writes"),
    "long uid": (tsv(connection("C" * 25)), "line 6: uid is 'CCCC"),
    "address": (tsv(connection(**{"id.orig_h": "10.0.0.256"})), "line 6: '10.0.0.256' is no address"),
    "null in address": (jsonl(connection(**{"id.orig_h": "10.0.0.1\0"})), "line 1: .* is no address"),
    "port": (tsv(connection(**{"id.resp_p": "65536"})), "line 6: '65536' is no port"),
    "negative port": (tsv(connection(**{"id.resp_p": "-1"})), "line 6: '-1' is no port"),
    "endless port": (tsv(connection(**{"id.resp_p": "9" * 9000})), "line 6: '9999.* is no port"),
    "time": (tsv(connection(ts="soon")), "line 6: ts is 'soon', which is no number"),
    "no time": (tsv(connection(ts="nan")), "line 6: ts is nan seconds"),
    "endless time": (tsv(connection(ts="1e400")), "line 6: ts is inf seconds"),
    "late time": (jsonl(connection(ts="9999-12-31T23:59:59Z")), "line 1: ts is .* seconds"),
    "broken date": (jsonl(connection(ts="2026-13-01T00:00:00Z")), "line 1: "),
    "duration": (tsv(connection(duration="1e12")), r"line 6: duration is 1e\+12 seconds"),
    "separator": (b"#separator \\x0909\n", "line 1: #separator '.*' is not one character"),
    "damaged gzip": (gzip.compress(tsv(connection()), mtime=0)[:-12], "conn.log: damaged: "),
    "gzip in name alone": (b"\x1f\x8b" + b"\xff" * 100, "conn.log: damaged: "),
}  # fmt: skip


@pytest.mark.parametrize(("log", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_logs_are_refused_by_name_and_line(read, log, message):
    with pytest.raises(ValueError, match=f"conn.log(, |: ).*{message.removeprefix('conn.log: ')}") as raised:
        read(log)
    assert str(raised.value).isprintable()


def test_damage_anywhere_raises_nothing_but_a_value_error(read):
    rng = np.random.default_rng(1)
    logs = [
        tsv(*(connection(f"C{n}") for n in range(3))),
        jsonl(*(connection(f"C{n}") for n in range(3))),
        gzip.compress(tsv(connection()), mtime=0),
    ]
    messages = []
    for number in range(400):
        damaged = bytearray(logs[number % 3])
        for place in rng.integers(0, len(damaged), 1 + number % 3):
            damaged[place] = rng.integers(256)
        try:
            read(bytes(damaged)).uid(flow())
        except ValueError as error:
            messages.append(str(error))
    assert 50 < len(messages) < 400
    assert all("conn.log" in message for message in messages)


def test_a_missing_log_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"conn\.log"):
        ZeekConnections(str(tmp_path / "conn.log"))


def test_a_connection_takes_few_bytes(read):
    found = read(tsv(*(connection(f"C{number}", **{"id.orig_p": str(number)}) for number in range(1, 2001))))
    columns = [found._keys, found._first, found._last]
    assert sum(column.itemsize for column in columns) + len(found._uids) // found.n_connections == 48
    assert found._order.itemsize + found._sorted.itemsize == 16
    assert found.uid(flow(src_port=1234)) == "C1234"
