"""Allow-lists: which flows and stored alarms rules hide, what is refused, and rules made of alarms."""

import argparse
import json
import os
import struct
import tomllib
from datetime import UTC, date, datetime, timedelta
from ipaddress import ip_address, ip_network

import numpy as np
import pytest
from captures import pcap, tcp, udp, udp6

from sklearn_docids import FlowSampler
from sklearn_docids._alarms import stored
from sklearn_docids._alarms.allow import AllowList
from sklearn_docids._alarms.names import asked_name, name_in
from sklearn_docids.capture.flows import FlowRows, FlowRules
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.cli import _allow

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
RULES = FlowRules(
    n_packets=4, n_bytes=80, bidirectional=True, idle_timeout=120.0, tcp_restart=True, protocols=("tcp", "udp"),
    max_live_flows=10, layout="payload",
)  # fmt: skip


def allow(text):
    return AllowList.parse(text.encode(), "allow.toml")


def rule(why="tests", **keys):
    return "[[rule]]\n" + "".join(f"{key} = {value}\n" for key, value in {"why": json.dumps(why), **keys}.items())


@pytest.fixture
def sampled(write):
    """Return the flows of packets, one flow each unless they answer each other."""
    sampler = FlowSampler(layout="payload", fields="raw")
    return lambda packets: sampler.flows(write(pcap(packets, times=[i / 10 for i in range(len(packets))])))


def table(rng, n_flows):
    """Return flows between few hosts and ports, so that rules meet some."""
    rows = FlowRows.empty(n_flows, RULES)
    records = rows.records
    records["ip_version"] = rng.choice([4, 6], n_flows)
    for side in ("src", "dst"):
        records[f"{side}_low"] = 0x0A000000 + rng.integers(0, 1024, n_flows)
        records[f"{side}_high"] = np.where(records["ip_version"] == 6, 0x20010DB8 << 32, 0)
    records["dst_port"] = rng.choice([53, 80, 443, 8000, 8050, 8100, 65_535], n_flows)
    records["protocol"] = rng.choice([6, 17], n_flows)
    return FlowTable(rows, np.zeros(n_flows, np.int64), ["a.pcap"], [{}])


def naive_fits(rule, flow, name, view):
    """Say whether a rule, as TOML has it, hides a flow: an obvious twin."""
    source, destination, port, protocol = flow

    def each(key):
        value = rule.get(key, [])
        return value if isinstance(value, list) else [value]

    def has_port(given):
        first, _, last = str(given).partition("-")
        return int(first) <= port <= int(last or first)

    def has_service(given):
        kind, ports = given.split("/")
        return kind == protocol and has_port(ports)

    def has_name(given):
        return name.endswith(given[1:]) if given.startswith("*") else name == given

    return (
        ("source" not in rule or any(ip_address(source) in ip_network(n) for n in each("source")))
        and ("destination" not in rule or any(ip_address(destination) in ip_network(n) for n in each("destination")))
        and ("port" not in rule or any(map(has_port, each("port"))))
        and ("service" not in rule or any(map(has_service, each("service"))))
        and ("name" not in rule or any(map(has_name, each("name"))))
        and ("view" not in rule or view in each("view"))
    )


def random_rule(rng):
    def network():
        if rng.random() < 0.3:
            return str(ip_network(f"2001:db8::a00:{rng.integers(0, 4)}00/{rng.choice([119, 120])}", strict=False))
        return str(
            ip_network(f"10.0.{rng.integers(0, 4)}.{rng.integers(0, 256)}/{rng.choice([23, 26, 32])}", strict=False)
        )

    choices = {
        "source": lambda: [network() for _ in range(rng.integers(1, 4))],
        "destination": network,
        "port": lambda: [443, "8000-8050"] if rng.random() < 0.5 else 80,
        "service": lambda: ["tcp/1-8000", "udp/53"],
        "name": lambda: ["*.example.org", "nas"],
        "view": lambda: "novelty",
    }
    keys = [key for key in choices if rng.random() < 0.35] or ["source"]
    keys += ["port"] if keys == ["view"] else []
    return rule(**{key: json.dumps(choices[key]()) for key in keys})


@pytest.mark.parametrize("seed", range(20))
def test_rules_hide_what_their_obvious_twin_hides(seed):
    rng = np.random.default_rng(seed)
    flows = table(rng, 300)
    names = rng.choice(["", "nas", "www.example.org", "example.org", "badexample.org"], 300).tolist()
    views = rng.choice(["", "novelty", "content"], 300).tolist()
    text = "\n".join(random_rule(rng) for _ in range(6))
    found = allow(text).hides(flows, names, views=views, now=NOW)

    protocols = [{6: "tcp", 17: "udp"}[p] for p in flows.protocol]
    ends = zip(flows.src_ip.tolist(), flows.dst_ip.tolist(), flows.dst_port.tolist(), protocols, strict=True)
    expected = [
        next((i for i, r in enumerate(tomllib.loads(text)["rule"]) if naive_fits(r, *seen)), -1)
        for seen in zip(ends, names, views, strict=True)
    ]
    assert found.tolist() == expected
    assert -1 in expected
    assert max(expected) >= 0


def test_no_flows_and_no_rules_are_nothing_special():
    flows = table(np.random.default_rng(0), 5)
    assert allow("").hides(flows).tolist() == [-1] * 5
    assert allow(rule(port="443")).hides(flows[:0]).tolist() == []


def test_a_rule_ends_with_the_last_moment_of_its_day_in_utc():
    flows = table(np.random.default_rng(0), 3)
    rules = allow(rule(source='["10.0.0.0/8", "2001:db8::/32"]', until="2026-11-28"))
    assert rules.hides(flows, now=datetime(2026, 11, 28, 23, 59, 59, tzinfo=UTC)).tolist() == [0, 0, 0]
    assert rules.hides(flows, now=datetime(2026, 11, 29, tzinfo=UTC)).tolist() == [-1, -1, -1]
    (line,) = rules.described([0], 3, now=datetime(2026, 12, 1, tzinfo=UTC))
    assert line == "rule 1 has expired on 2026-11-28 23:59 UTC and hides nothing: tests"


def test_a_time_counts_in_its_zone():
    rules = allow(rule(port="443", until="2026-11-28T14:00:00+02:00"))
    assert not rules.rules[0].is_expired(NOW)
    assert rules.rules[0].is_expired(NOW + timedelta(seconds=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rule(port="1") + "\n\n" + rule(sourc="1"), r"allow.toml, rule 2 \(line 6\): 'sourc' .*did you mean source\?"),
        (rule(level='"host"', port="1"), r"'level' is no key; .*there are source, destination, .*until"),
        ("[[rules]]\nport = 1", r"allow.toml: 'rules' is no key; did you mean rule\?"),
        ("[rule]\nport = 1", r"allow.toml: rules begin with \[\[rule\]\]"),
        ("[[rule]]\nport = 443", r"rule 1 \(line 1\): why is missing"),
        (rule(why=" ", port="443"), r"why: ' ' is no text, or an empty one"),
        (rule(source='"10.0.0.5/24"'), r"source: '10.0.0.5/24' .*did you mean 10.0.0.0/24, or the address alone\?"),
        (rule(source='"10.0.0.256"'), r"source: '10.0.0.256' is no address or network, such as"),
        (rule(source="5"), r"source: 5 is no address or network: those are text, in quotes"),
        (rule(source="[]"), r"source: the list is empty"),
        (rule(port="70000"), r"port: 70000 is no port"),
        (rule(port="true"), r"port: True is no port"),
        (rule(port='"8100-8000"'), r"port: '8100-8000' is no port"),
        (rule(service='"https"'), r"service: 'https' is no service, such as \"tcp/443\""),
        (rule(service='"tcp/"'), r"service: '' is no port"),
        (rule(name='"*"'), r"name: '\*' is no name"),
        (rule(name='"www.*.org"'), r"name: 'www.\*.org' is no name"),
        (rule(port="1", until='"2026-12-31"'), r"until: '2026-12-31' is no date or time.* without quotes"),
        (rule(port="1", until="2026-12-31T18:00:00"), r"until: 2026-12-31 18:00:00 has no zone: add Z"),
        (rule(port="1", added='"today"'), r"added: 'today' is no date"),
        ("[[rule]]\nport = x\n", r"allow.toml is no TOML: .*line 2"),
        ("x = " + "[" * 100_000, r"allow.toml is no TOML: "),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(text, message):
    with pytest.raises(ValueError, match=message):
        allow(text)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"source": '"0.0.0.0/0"'},
        {"source": '["0.0.0.0/1", "128.0.0.0/1"]'},
        {"source": '["10.0.0.1", "::/0"]', "destination": '"::/0"'},
        {"port": '"0-65535"'},
        {"service": '["tcp/1-65535"]'},
        {"view": '"novelty"'},
    ],
)
def test_a_rule_that_hides_everything_is_refused(keys):
    with pytest.raises(ValueError, match=r"rule 1 \(line 1\): it would hide everything"):
        allow(rule(**keys))


def test_any_source_is_allowed_where_the_service_is_named():
    rules = allow(rule(source='["0.0.0.0/0", "::/0"]', service='"tcp/443"'))
    flows = table(np.random.default_rng(0), 100)
    is_meant = (flows.protocol == 6) & (flows.dst_port == 443)
    assert ((rules.hides(flows) == 0) == is_meant).all()


def test_a_list_that_hides_most_is_told_of():
    rules = allow(rule(port="443") + rule(port="80"))
    assert list(rules.described([60, 30], 100)) == ["60 hidden by rule 1: tests", "30 hidden by rule 2: tests"]
    *_, last = rules.described([61, 30], 100)
    assert last.startswith("the allow-list hides 91 of 100, 91%: see whether its rules are wider")


def test_files_by_windows_editors_are_read(tmp_path):
    path = tmp_path / "allow.toml"
    path.write_bytes(b"\xef\xbb\xbf" + rule(port="443").replace("\n", "\r\n").encode())
    assert AllowList.load(path).rules[0].port == ((443, 443),)


def test_what_is_too_long_or_no_text_is_refused(tmp_path):
    path = tmp_path / "allow.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"allow.toml is no TOML: .*utf-8"):
        AllowList.load(path)
    with pytest.raises(ValueError, match="longer than 16 MiB"):
        AllowList.load("/dev/zero")


# --------------------------------------------------------------------------------------------------------------------
# Names


def query(name, flags=0x0100, n_questions=1):
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b"."))
    return struct.pack(">HHHHHH", 7, flags, n_questions, 0, 0, 0) + labels + b"\0\0\x01\0\x01"


@pytest.mark.parametrize(
    ("messages", "name"),
    [
        ([query("WWW.Example.org")], "www.example.org"),
        ([query("_ldap._tcp.dc01")], "_ldap._tcp.dc01"),
        ([query("a.example.org"), query("a.example.org")], "a.example.org"),
        ([query("a.example.org"), query("b.example.org")], ""),
        ([query("a" * 60 + ".org")[:72]], ""),
        ([query("a.org")[:17]], ""),
        ([query("a.org", n_questions=2)], ""),
        ([query("a.org", flags=0x8180)], ""),
        ([query("a b.org")], ""),
        ([b"\0" * 12 + b"\xc0\x0c"], ""),
        ([b""], ""),
    ],
)
def test_names_of_queries(messages, name):
    assert name_in(messages, 17, 53) == name
    assert name_in(messages, 17, 5354) == ""


@pytest.mark.parametrize(
    ("messages", "name"),
    [
        ([b"GET / HTTP/1.1\r\nHost: WWW.example.org\r\nUser"], "www.example.org"),
        ([b"GET / HTTP/1.1\r\nhost:www.example.org:8080 \r\n\r\n"], "www.example.org"),
        ([b"GET / HTTP/1.1\r\nHost: a.org\r\n\r\n", b"GET /2 HTTP/1.1\r\nHost: a.org\r\n\r\n"], "a.org"),
        ([b"GET / HTTP/1.1\r\nHost: a.org\r\n\r\n", b"GET /2 HTTP/1.1\r\nHost: b.org\r\n\r\n"], ""),
        ([b"POST / HTTP/1.1\r\nHost: a.org\r\n\r\n", b"x=1"], "a.org"),
        ([b"GET / HTTP/1.1\r\nHost: a.org\r\nHost: b.org\r\n"], ""),
        ([b"POST / HTTP/1.1\r\nAccept: */*\r\n\r\n\r\nHost: a.org\r\n"], ""),
        ([b"GET / HTTP/1.1\r\nHost: www.example.o"], ""),
        ([b"GET / HTTP/1.1\r\nHost: www.example.org\r"], ""),
        ([b"CONNECT a.org:443 HTTP/1.1\r\nHost: b.org\r\n"], "a.org"),
        ([b"GET http://a.org:80/x HTTP/1.1\r\n"], "a.org"),
        ([b"GET http://a.org:80@b.org/x HTTP/1.1\r\n"], ""),
        ([b"GET http://a.or"], ""),
        ([b"SSH-2.0-x"], ""),
        ([], ""),
    ],
)
def test_hosts_of_requests(messages, name):
    assert name_in(messages, 6, 8080) == name


def test_names_are_taken_from_rows_of_payload(sampled):
    flows = sampled(
        [
            udp(4000, 53, query("www.example.org")),
            udp(53, 4000, query("other.example.org", flags=0x8180), src="10.0.0.2", dst="10.0.0.1"),
            tcp(4001, 80, "PA", b"GET /a HTTP/1.1\r\nHost: shop.example.org\r\n"),
            udp(4002, 53, query("www.example.com")),
        ]
    )
    assert [asked_name(flows, row) for row in range(3)] == ["www.example.org", "shop.example.org", "www.example.com"]
    assert allow(rule(name='"*.example.org"')).hides(flows).tolist() == [0, 0, -1]


def test_rows_of_headers_show_no_names_and_that_is_said_once(write):
    flows = FlowSampler().flows(write(pcap([udp(4000, 53, query("www.example.org"))])))
    rules = allow(rule(port="54") + rule(name='"*.example.org"'))
    with pytest.warns(UserWarning, match=r"rules that hide nothing here \(2\): names are seen in rows of payload"):
        assert rules.hides(flows).tolist() == [-1]
    assert rules.hides(flows).tolist() == [-1]


def test_names_outside_ascii_are_those_on_the_wire():
    assert allow(rule(name='"*.müller.example"')).rules[0].name == ("*.xn--mller-kva.example",)


# --------------------------------------------------------------------------------------------------------------------
# Stored alarms


def eve(incident="i1", level="channel", src="10.0.0.5", dst="10.0.0.9", port=443, view="novelty", **context):
    return {
        "timestamp": "2026-11-28T10:00:00.000000+0000",
        "event_type": "alert",
        "src_ip": src,
        "src_port": 40_000,
        "dest_ip": dst,
        "dest_port": port,
        "proto": "TCP",
        "alert": {
            "gid": 1117,
            "context": {
                "incident": incident, "level": level, "n_flows": 1, "n_channels": 1, "reasons": [f"{view}: never seen"],
                **context,
            },
        },
    }  # fmt: skip


OTHERS = [
    {"event_type": "stats", "timestamp": "x"},
    {"event_type": "alert", "src_ip": "10.0.0.5", "dest_ip": "10.0.0.9", "alert": {"signature_id": 2000001}},
    eve(src="nonsense"), eve(port=10**30), eve(level="moon"), eve(n_flows=None), eve(request_hex="zz"),
]  # fmt: skip


def lines_of(*entries):
    return [json.dumps(entry).encode() + b"\n" for entry in entries]


def flat(incident="i1", src="10.0.0.5", dst="10.0.0.9", port=443):
    return {
        "incident": incident, "level": "channel", "n_flows": 3, "n_channels": 1, "time_first": "2026-11-28T10:00:00Z",
        "src_ip": src, "dst_ip": dst, "dst_port": port, "protocol": "tcp", "reason": "content: much; statistics: x",
    }  # fmt: skip


def csv_of(*entries):
    return [
        line.encode() + b"\n" for line in [",".join(entries[0]), *(",".join(map(str, e.values())) for e in entries)]
    ]


def hidden(rules, lines):
    alarms = [line.alarm for line in stored.read_lines(lines) if line.alarm]
    return (rules.first_fitting(stored.facts_of(alarms), NOW) >= 0).tolist()


@pytest.mark.parametrize("form", [lambda *e: lines_of(*e), csv_of])
def test_flat_records_are_read(form):
    lines = form(flat(), flat("i2", "2001:db8::1", "2001:db8::2", 53))
    first, second = [line.alarm for line in stored.read_lines(lines) if line.alarm]
    assert (str(first.source), str(first.destination), first.port, first.protocol) == ("10.0.0.5", "10.0.0.9", 443, 6)
    assert (first.id, first.view, first.n_flows, str(second.source)) == ("i1", "content", 3, "2001:db8::1")
    assert hidden(allow(rule(source='"2001:db8::/32"')), lines) == [False, True]


def test_lines_that_are_no_alarms_of_ours_have_none():
    lines = [*lines_of(*OTHERS), b"", b"\n", b"{", b"\xff\xfe\n", b"[1]\n", b'{"a":' * 100_000]
    assert [line.alarm for line in stored.read_lines(lines)] == [None] * len(lines)


def test_stored_alarms_are_hidden_as_their_flow_would_be():
    request = query("www.example.org").hex()
    lines = lines_of(
        eve(), eve(view="content"), eve(port=80), eve(dst="10.0.0.7"),
        eve(request_hex=b"GET / HTTP/1.1\r\nHost: nas\r\n".hex()),
        {**eve(port=53, request_hex=request), "proto": "UDP"},
    )  # fmt: skip
    assert hidden(allow(rule(service='"tcp/443"', destination='"10.0.0.9"')), lines) == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]
    assert hidden(allow(rule(source='"10.0.0.5"', view='"content"')), lines) == [
        False,
        True,
        False,
        False,
        False,
        False,
    ]
    assert hidden(allow(rule(name='["nas", "*.example.org"]')), lines) == [False, False, False, False, True, True]


def test_of_an_alarm_of_many_channels_one_channel_says_nothing():
    lines = lines_of(eve(level="host", n_channels=7), eve(level="host", n_channels=1))
    assert hidden(allow(rule(source='"10.0.0.5"', destination='"10.0.0.9"')), lines) == [False, True]
    assert hidden(allow(rule(source='"10.0.0.5"')), lines) == [True, True]


# --------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def docids(tmp_path, capfdbinary, monkeypatch):
    """Run the command in a folder; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def docids(*arguments):
        parser = argparse.ArgumentParser()
        _allow.add_options(parser)
        _allow.run(parser.parse_args(arguments))
        printed = capfdbinary.readouterr()
        return printed.out.decode(), printed.err.decode()

    return docids


def alarms_file(folder, *entries, name="alarms.eve.json"):
    (folder / name).write_bytes(b"".join(lines_of(*entries)))
    return name


MANY = [
    eve("a", n_flows=1), eve("b", src="10.0.0.6"), eve("a", n_flows=10), eve("c", dst="10.0.0.7"),
    eve("d", level="host", n_channels=9), {"event_type": "stats"},
]  # fmt: skip


def test_a_rule_is_made_of_an_alarm_and_hides_it(docids, tmp_path):
    path = alarms_file(tmp_path, *MANY)
    out, err = docids("--from", path, "--id", "a", "--why", 'the "backup"\x7f\n', "--until", "2999-12-31")
    (made,) = tomllib.loads(out)["rule"]
    added = made.pop("added")
    assert abs(added - datetime.now(UTC)) < timedelta(minutes=1)
    assert made == {
        "source": "10.0.0.5", "destination": "10.0.0.9", "service": "tcp/443", "why": 'the "backup"\x7f\n',
        "until": date(2999, 12, 31),
    }  # fmt: skip
    assert err.splitlines()[0] == "rule 1 of allow.toml would have hidden 2 of 5 alarms: 1 incidents with 10 flows"
    assert (tmp_path / "allow.toml").read_text() == out
    out, err = docids("--apply", path)
    assert [json.loads(line) for line in out.splitlines()] == [MANY[1], *MANY[3:]]
    assert err.splitlines()[0] == "5 alarms, 2 of them hidden, 3 stay"
    assert err.splitlines()[1].startswith("2 hidden by rule 1: the ")
    assert err.splitlines()[2] == "1 lines are no alarms of docids, and stay"


@pytest.mark.parametrize(
    ("scope", "keys", "n_hidden"),
    [
        ("host", {"source"}, 4),
        ("service", {"destination", "service"}, 3),
        ("channel", {"source", "destination", "service"}, 2),
    ],
)
def test_the_scope_says_which_keys_a_rule_has(docids, tmp_path, scope, keys, n_hidden):
    out, err = docids("--from", f"{alarms_file(tmp_path, *MANY)}:3", "--why", "x", "--scope", scope, "--dry-run")
    assert set(tomllib.loads(out)["rule"][0]) == keys | {"why", "added"}
    assert f"would have hidden {n_hidden} of 5 alarms" in err
    assert not (tmp_path / "allow.toml").exists()


def test_an_alarm_of_a_host_makes_a_rule_for_the_host(docids, tmp_path):
    out, _ = docids("--from", f"{alarms_file(tmp_path, *MANY)}:5", "--why", "scanner")
    assert tomllib.loads(out)["rule"][0]["source"] == "10.0.0.5"
    assert "destination" not in out


def test_rules_are_added_behind_what_is_there_with_its_comments(docids, tmp_path):
    before = "# ours\n\n" + rule(port="22") + "# no end of line"
    (tmp_path / "allow.toml").write_text(before)
    os.chmod(tmp_path / "allow.toml", 0o640)
    (tmp_path / "link.toml").symlink_to("allow.toml")
    path = alarms_file(tmp_path, *MANY)
    out, _ = docids("--from", f"{path}:1", "--why", "first", "--list", "link.toml")
    docids("--from", f"{path}:2", "--why", "second", "--list", "link.toml")
    assert (tmp_path / "allow.toml").read_text().startswith(before + "\n\n" + out + "\n[[rule]]\n")
    assert [r.why for r in AllowList.load("allow.toml").rules] == ["tests", "first", "second"]
    assert (tmp_path / "link.toml").is_symlink()
    assert (tmp_path / "allow.toml").stat().st_mode & 0o777 == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alarms.eve.json", "allow.toml", "link.toml"]


def test_what_is_hidden_already_gets_no_second_rule(docids, tmp_path):
    path = alarms_file(tmp_path, *MANY)
    docids("--from", f"{path}:1", "--why", "backup")
    with pytest.raises(ValueError, match=r"rule 1 of allow.toml is the same: backup"):
        docids("--from", f"{path}:3", "--why", "again")
    with pytest.raises(ValueError, match=r"rule 1 of allow.toml hides this alarm already: backup"):
        docids("--from", f"{path}:3", "--why", "again", "--scope", "host")
    assert len(AllowList.load("allow.toml").rules) == 1


def test_an_expired_rule_may_be_made_again(docids, tmp_path):
    (tmp_path / "allow.toml").write_text(rule(source='"10.0.0.5"', until="2020-01-01"))
    docids("--from", f"{alarms_file(tmp_path, *MANY)}:5", "--why", "still")
    assert len(AllowList.load("allow.toml").rules) == 2


def test_the_only_alarm_of_a_file_needs_no_name(docids, tmp_path):
    out, err = docids("--from", alarms_file(tmp_path, eve("a"), eve("a", n_flows=10)), "--why", "x", "--dry-run")
    assert "tcp/443" in out
    assert "that is 100% of them: see whether the rule is wider than it should be" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--why", "x"], r"alarms.eve.json has alarms of 4 incidents, say which one is meant by --id ID: a, b, c, d"),
        (["--why", "x", "--id", "z"], r"--id z is not among them: a, b, c, d"),
        (["--id", "a"], "--why is missing"),
        (["--id", "a", "--why", " "], "--why is missing"),
        (["--id", "a", "--why", "x", "--until", "2020-01-01"], "--until 2020-01-01 is over"),
        (["--id", "a", "--why", "x", "--until", "tomorrow"], "--until tomorrow is no day, such as"),
        (["--id", "a", "--why", "x", "--until", "2999-01-01T10:00:00"], "no time with zone"),
        (["--id", "a", "--why", "x", "--list", "no/where.toml"], "the folder of --list no/where.toml does not exist"),
        (["--id", "a", "--why", "x", "--preview", "none.json"], "No such file"),
        (["--id", "a", "--why", "x", "--list", "alarms.eve.json"], "alarms.eve.json is no TOML"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(docids, tmp_path, arguments, message):
    path = alarms_file(tmp_path, *MANY)
    with pytest.raises((ValueError, OSError), match=message):
        docids("--from", path, *arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["alarms.eve.json"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("alarms.eve.json:6", "alarms.eve.json has no alarm in line 6"),
        ("alarms.eve.json:99", "alarms.eve.json has no line 99"),
        ("empty.json", "empty.json holds no alarm that docids wrote"),
    ],
)
def test_an_alarm_that_is_not_there_is_named(docids, tmp_path, given, message):
    alarms_file(tmp_path, *MANY)
    (tmp_path / "empty.json").touch()
    with pytest.raises(ValueError, match=message):
        docids("--from", given, "--why", "x")


def test_a_file_whose_name_looks_like_a_line_is_a_file(docids, tmp_path):
    out, _ = docids("--from", alarms_file(tmp_path, eve("a", port=80), name="a:1"), "--why", "x", "--dry-run")
    assert "tcp/80" in out


def test_stored_alarms_may_be_many_and_keep_their_order(docids, tmp_path):
    (tmp_path / "allow.toml").write_text(rule(port="443"))
    entries = [eve(str(i), port=443 if i % 3 else 80) for i in range(10_000)]
    out, err = docids("--apply", alarms_file(tmp_path, *entries))
    assert out.splitlines() == [json.dumps(entry) for entry in entries if entry["dest_port"] == 80]
    assert err.splitlines()[0] == "10000 alarms, 6666 of them hidden, 3334 stay"


def test_options_of_a_rule_do_not_go_with_reading_a_list(docids, tmp_path):
    with pytest.raises(ValueError, match="--why goes with --from"):
        docids("--apply", "x", "--why", "x")
    with pytest.raises(FileNotFoundError):
        docids("--apply", alarms_file(tmp_path, *MANY))


def test_alarms_cannot_steer_the_terminal(docids, tmp_path):
    path = alarms_file(tmp_path, eve("a", view="\x1b[2J"))
    _, err = docids("--from", path, "--why", "x", "--dry-run")
    assert "\x1b" not in err


def test_addresses_of_both_versions_are_told_apart(sampled):
    flows = sampled([udp(1, 53, b"x"), udp6(1, 53, b"x", src="::a00:1", dst="::a00:2")])
    assert allow(rule(source='"10.0.0.1"')).hides(flows).tolist() == [0, -1]
    assert allow(rule(source='"::a00:1"')).hides(flows).tolist() == [-1, 0]
