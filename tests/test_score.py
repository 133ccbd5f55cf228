"""`docids score`: summary, incidents, tables in several formats, rules that hide, packets of what is abnormal."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from captures import pcap, tcp, udp
from office import burst, capture_of, office
from scapy.layers.inet import IP

from sklearn_docids import load_detector
from sklearn_docids._alarms.collect import Scorer
from sklearn_docids._text import csv_cell
from sklearn_docids.aggregation import find_incidents
from sklearn_docids.cli import _score, main
from sklearn_docids.cli._text import main_reason
from sklearn_docids.datasets import make_traffic


@pytest.fixture(scope="module")
def captures(tmp_path_factory):
    """Return captures of an office, and of another day of it with guesses of a password and a strange request."""
    folder = tmp_path_factory.mktemp("office")
    strange = ([udp(9, 8443, b"=\x1b[31m", src="10.0.0.2", dst="10.0.9.9")], [1300.0])
    days = {"train": office(150, 0), "test": [*office(80, 1, 400), *burst(40, 1200.0), strange]}
    for name, dialogues in days.items():
        (folder / f"{name}.pcap").write_bytes(capture_of(dialogues))
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def model(captures, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("model") / "views")
    assert main(["fit", captures["train"], "--views", "requests,novelty,content", "--model", path, "--quiet"]) == 0
    return path


@pytest.fixture(scope="module")
def judged(captures, model):
    """Return the flows of the other day and what the detector says of them."""
    detector = load_detector(model)
    flows = detector.sampler_.flows(captures["test"])
    return detector, flows, detector.stream().judge(flows)


def printed(capsys, *command):
    """Run a command, and return what it printed to standard output."""
    assert main(list(command)) == 0
    return capsys.readouterr().out


def test_score_prints_what_was_read_and_incidents_with_their_reasons(captures, model, judged, capsys):
    detector, flows, found = judged
    lines = printed(capsys, "score", captures["test"], "--model", model).splitlines()
    flagged = found.scores < detector.offset_
    assert re.match(r"read \d+ packets, 0 ignored, 121 flows", lines[0])
    assert lines[1].startswith("121 flows from 1970-01-01T00:16:44Z")
    assert f": {flagged.sum()} abnormal ({flagged.mean():.2%}); 1.00% of normal ones would be" in lines[1]
    incidents = find_incidents(flows, found.scores, detector.offset_)
    shown = [line for line in lines if re.match(r" +-\d+\.\d+  1970", line)]
    assert [float(line.split()[0]) for line in shown] == [round(incident.score, 3) for incident in incidents]
    assert lines[2].startswith(f"{len(incidents)} incidents, which come up as ")
    strange = next(n for n, line in enumerate(lines) if "10.0.0.2 -> 10.0.9.9:8443/udp  1 flow  " in line)
    assert "novelty (p " in "".join(lines[strange + 1 : strange + 4])
    assert "udp/8443 was never a destination here" in "".join(lines[strange + 1 : strange + 4])


def test_json_says_the_same(captures, model, judged, capsys):
    detector, flows, found = judged
    said = json.loads(printed(capsys, "score", captures["test"], "--model", model, "--json"))
    incidents = find_incidents(flows, found.scores, detector.offset_)
    assert (said["flows"], said["abnormal"]) == (121, int((found.scores < detector.offset_).sum()))
    assert [each["score"] for each in said["most_abnormal"]] == [incident.score for incident in incidents]
    assert [each["flows"] for each in said["most_abnormal"]] == [incident.n_flows for incident in incidents]
    assert said["captures"][0]["name"] == captures["test"]
    assert said["captures"][0]["flows"] == 121
    reasons = said["most_abnormal"][0]["reasons"]
    assert reasons == [reason._asdict() for reason in found.reasons(incidents[0].most_abnormal)]


def rows_of(path, text):
    """Return the rows of a table, as dictionaries of text."""
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    if path.suffix == ".jsonl":
        return [{k: str(v) for k, v in json.loads(line).items()} for line in text.splitlines()]
    parquet = pytest.importorskip("pyarrow.parquet")
    return [{k: str(v) for k, v in row.items()} for row in parquet.read_table(path).to_pylist()]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_has_a_line_per_flow_with_score_threshold_verdict_and_reason(captures, model, judged, tmp_path, suffix):
    detector, flows, found = judged
    path = tmp_path / f"scores{suffix}"
    assert main(["score", captures["test"], "--model", model, "--output", str(path)]) == 0
    rows = rows_of(path, "" if suffix == ".parquet" else path.read_text())
    by_port = dict(zip(flows.src_port.tolist(), range(len(flows)), strict=True))
    assert sorted(by_port[int(row["src_port"])] for row in rows) == list(range(len(flows)))
    normal = np.sort(detector.calibration_scores_)
    for row in rows:
        place = by_port[int(row["src_port"])]
        flagged = found.scores[place] < detector.offset_
        assert (float(row["score"]), float(row["threshold"])) == (found.scores[place], detector.offset_)
        assert row["verdict"] == ("abnormal" if flagged else "normal")
        assert row["reason"] == (csv_cell(main_reason(found.reasons(place))) if flagged else "")
        assert (row["src_ip"], row["dst_ip"]) == (flows.src_ip[place], flows.dst_ip[place])
        assert row["community_id"] == flows.community_id[place]
        assert int(row["bytes_backward"]) == flows.bytes_backward[place]
        n_as_low = int(np.sum(normal <= found.scores[place]))
        assert float(row["p_value"]) == (1 + n_as_low) / (1 + len(normal))
    assert {row["protocol"] for row in rows} == {"tcp", "udp"}


def test_a_table_on_standard_output_takes_the_place_of_the_incidents(captures, model, capsys):
    text = printed(capsys, "score", captures["test"], "--model", model, "--output", "-", "--only-abnormal")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows
    assert {row["verdict"] for row in rows} == {"abnormal"}


def test_flows_scored_in_pieces_are_one_stream(captures, model, monkeypatch, capsys):
    both = [captures["train"], captures["test"]]
    monkeypatch.setattr(_score, "CHUNK_FLOWS", 30)
    text = printed(capsys, "score", *both, "--model", model, "--output", "-")
    detector = load_detector(model)
    stream = detector.stream()
    pieces = list(_score.pieces(detector.sampler_, both))
    assert len(pieces) > 2
    expected = np.concatenate([stream.score_samples(flows) for flows in pieces])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["score"]) for row in rows] == expected.tolist()
    assert {row["capture"] for row in rows} == set(both)


def test_a_capture_without_flows_gives_a_summary_and_a_table_without_rows(model, write, capsys):
    empty = str(write(pcap([])))
    assert printed(capsys, "score", empty, "--model", model).splitlines() == [
        "read 0 packets, 0 ignored, 0 flows",
        "0 flows: 0 abnormal; 1.00% of normal ones would be",
        "0 incidents",
    ]
    head = printed(capsys, "score", empty, "--model", model, "--output", "-").splitlines()
    assert len(head) == 1
    assert head[0].startswith("capture,time_first,")


def test_a_network_that_the_model_does_not_know_is_called_so(model, tmp_path, capsys):
    traffic = make_traffic(tmp_path, n_flows=150, random_state=0)
    out = printed(capsys, "score", str(traffic.train), "--model", model)
    assert "of the flows are abnormal to this model: " in out
    assert "and so does a model of another network, which docids calibrate fits to this one" in out
    assert "Drift: " in out


def test_tails_of_connections_are_told_apart_and_can_be_left_out(model, write, tmp_path, capsys):
    packets = [
        tcp(sport=port, flags=flags) for port in range(1, 40) for flags in (("S", "A") if port % 2 else ("A", "PA"))
    ]
    command = ["score", str(write(pcap(packets))), "--model", model, "--output", str(tmp_path / "s.csv")]
    out = printed(capsys, *command)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text())))
    tails = [row for row in rows if row["begin"] == "running"]
    assert (len(rows), len(tails), {row["end"] for row in rows}) == (39, 19, {"open"})
    n_abnormal = sum(row["verdict"] == "abnormal" for row in tails)
    assert f"; {n_abnormal} of them midstream" in out
    out = printed(capsys, *command, "--midstream", "drop")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text())))
    assert {row["begin"] for row in rows} == {"handshake"}
    assert "20 flows (19 dropped)" in out


def test_rules_hide_alarms_that_are_counted(captures, model, tmp_path, capsys):
    rules = tmp_path / "allow.toml"
    rules.write_text('[[rule]]\nsource = "10.0.0.2"\nservice = "udp/8443"\nwhy = "a test of ours"\n')
    before = json.loads(printed(capsys, "score", captures["test"], "--model", model, "--json"))
    command = ["score", captures["test"], "--model", model, "--allow-list", str(rules)]
    after = json.loads(printed(capsys, *command, "--json"))
    assert (before["abnormal"] - after["abnormal"], list(after["hidden"].values())) == (1, [1])
    assert "a test of ours" in next(iter(after["hidden"]))
    assert not [each for each in after["most_abnormal"] if each["who"].endswith("8443/udp")]
    assert "1 more abnormal flows are hidden by rule 1: a test of ours" in printed(capsys, *command)
    rules.write_text(
        '[[rule]]\nsource = "10.0.0.0/8"\nwhy = "all"\n[[rule]]\nport = 1\nwhy = "x"\nuntil = 2020-01-01\n'
    )
    assert main(command) == 0
    streams = capsys.readouterr()
    assert "the allow-list hides nearly all that is abnormal" in streams.out
    assert "rule 2 has expired on 2020-01-01 23:59 UTC and hides nothing: x" in streams.err
    rules.write_text('[[rule]]\nsource = "10.0.0.2"\nservice = "udp/8443"\nwhy = "a test of ours"\n')
    table = printed(capsys, *command, "--output", "-")
    assert [row["src_ip"] for row in csv.DictReader(io.StringIO(table)) if row["verdict"] == "hidden"] == ["10.0.0.2"]


def test_alarms_are_written_as_eve_lines_with_the_uid_of_zeek(captures, model, judged, tmp_path):
    _, flows, _ = judged
    place = int(np.flatnonzero(flows.dst_port == 8443)[0])
    log = tmp_path / "conn.log"
    fields = {"ts": 1300.0, "uid": "Cabc", "id.orig_h": "10.0.0.2", "id.orig_p": 9, "id.resp_h": "10.0.9.9"}
    log.write_text(json.dumps({**fields, "id.resp_p": 8443, "proto": "udp", "duration": 1.0}) + "\n")
    output = tmp_path / "alarms.eve.json"
    command = ["score", captures["test"], "--model", model, "--output", str(output), "--zeek-log", str(log)]
    assert main(command) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert {line["event_type"] for line in lines} == {"alert"}
    (line,) = [line for line in lines if line["dest_port"] == 8443]
    assert line["community_id"] == flows.community_id[place]
    assert "Cabc" in json.dumps(line["alert"]["context"])


def test_packets_of_abnormal_flows_are_written(captures, model, judged, tmp_path):
    detector, flows, found = judged
    output = tmp_path / "alarms.pcapng"
    assert main(["score", captures["test"], "--model", model, "--write-pcap", str(output)]) == 0
    again = detector.sampler_.flows(str(output))
    flagged = flows[found.scores < detector.offset_]
    assert sorted(again.community_id) == sorted(flagged.community_id)
    assert again.X[np.argsort(again.src_port)].tolist() == flagged.X[np.argsort(flagged.src_port)].tolist()


def test_score_writes_a_page(captures, model, tmp_path):
    page = tmp_path / "page.html"
    assert main(["score", captures["test"], "--model", model, "--html", str(page)]) == 0
    assert "10.0.9.9" in Path(page).read_text()


def test_a_budget_of_alarms_per_day_holds_and_the_rest_is_counted(captures, model, capsys):
    all_of_them = json.loads(printed(capsys, "score", captures["test"], "--model", model, "--json"))
    few = json.loads(printed(capsys, "score", captures["test"], "--model", model, "--json", "--alarms-per-day", "1"))
    assert all_of_them["alarms"] > few["alarms"] >= 1
    assert few["over_budget"] == all_of_them["alarms"] - few["alarms"]
    assert few["incidents"] == all_of_them["incidents"]


def test_flows_that_idle_out_come_late_and_are_no_burst(model, write):
    dialogues = office(120, 1, 400)
    for packets, times in dialogues[::2]:  # pages, whose clients close the connection now, too
        first = packets[0][IP]
        packets.append(tcp(first.sport, 80, "FA", src=first.src, dst=first.dst))
        times.append(times[-1] + 0.01)
    detector = load_detector(model)
    flows = detector.sampler_.flows(write(capture_of(dialogues)))
    is_closed = flows.end == "closed"
    assert 10 < is_closed.sum() < len(flows) - 10
    ended_at = flows.time_last + np.where(is_closed, 0, 120 * 10**9)
    scorer, scores = Scorer(detector), np.empty(len(flows))
    for rows in np.array_split(np.argsort(ended_at, kind="stable"), 9):
        scores[rows] = scorer.score(flows[rows]).scores
    # Late by two minutes or not, a flow counts at its own time.
    in_order = detector.score_samples(flows)
    assert (scores < detector.offset_).sum() <= (in_order < detector.offset_).sum()
