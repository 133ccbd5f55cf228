"""Pages for people: what they say, that nothing in them is executed, and how they look in a browser."""

import base64
import html
import json
import re
import shutil
import subprocess
import warnings
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from captures import pcap, tcp, udp, udp6
from hypothesis import given, settings
from hypothesis import strategies as st
from office import burst, capture_of, office

from sklearn_docids import DOCIDSDetector, FlowSampler, MultiViewDetector, ReferenceData, save_detector
from sklearn_docids._alarms.alarm import Alarm
from sklearn_docids._alarms.collect import Scorer
from sklearn_docids._alarms.findings import HOUR_NS, Findings, HostFindings
from sklearn_docids._report.bytemap import byte_maps, request_of
from sklearn_docids._report.charts import MOST_BARS, score_chart, timeline
from sklearn_docids._report.evaluation import write_report
from sklearn_docids._report.page import write_page
from sklearn_docids._version import __version__
from sklearn_docids.cli import main
from sklearn_docids.cli._explaining import most_abnormal
from sklearn_docids.datasets import load_class_folder, make_traffic
from sklearn_docids.evaluation import Evaluation, Scored, evaluate

HOSTILE = ["<script>alert(1)</script>.pcap", '"><img src=x onerror=alert(2)>.pcap', "a\u202egnp.\x1b[31m\n.pcap"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Return the flows of an office, of another day of it with a burst of guesses, and of the burst alone."""
    folder = tmp_path_factory.mktemp("office")
    strange = ([udp(9, 8443, b"<b>\x1b[31m", src="10.0.0.2", dst="10.0.9.9")], [1300.0])
    days = {"train": office(150, 0), "test": [*office(80, 1, 400), *burst(40, 1200.0), strange]}
    flows = {}
    for name, dialogues in {**days, "normal": office(110, 2, 600), "burst": burst(12, 1200.0)}.items():
        path = folder / f"{name}.pcap"
        path.write_bytes(capture_of(dialogues))
        flows[name] = FlowSampler(layout="payload").flows(str(path))
    return flows


@pytest.fixture(scope="module")
def detector(tables, tmp_path_factory):
    """Return a detector with a view of bytes."""
    traffic = make_traffic(tmp_path_factory.mktemp("traffic"), n_flows=1, n_reference=4, random_state=0)
    sampler = FlowSampler(layout="payload")
    reference = load_class_folder(traffic.reference[0].parent, sampler=sampler)
    network = DOCIDSDetector(max_epochs=2, batch_size=32)
    several = MultiViewDetector(views=("novelty", "content", "bytes"), detector=network, random_state=0)
    return several.fit(tables["train"], reference=ReferenceData(reference.X, reference.y))


@pytest.fixture(scope="module")
def plain(tables):
    """Return a detector that looks at no bytes."""
    return MultiViewDetector(views=("novelty", "content")).fit(tables["train"])


def found_in(detector, flows, model="office.model"):
    """Return what is found in flows, with an incident per channel."""
    scored = Scorer(detector).score(flows)
    channels, hosts = {}, {}
    for flow in scored.flagged():
        channels.setdefault((flow.flow.src_ip[0], flow.flow.dst_ip[0], flow.flow.dst_port[0]), []).append(flow)
    incidents = []
    for number, flagged in enumerate(channels.values()):
        times = [int(each.flow.time_first[0]) for each in flagged]
        worst = min(flagged, key=lambda each: each.score)
        incidents.append(Alarm(f"{number:016x}", "channel", min(times), max(times), len(times), 1, worst))
        source = hosts.setdefault(str(worst.flow.src_ip[0]), HostFindings(100))
        source.n_flagged, source.score = source.n_flagged + len(times), min(source.score, worst.score)
    incidents.sort(key=lambda each: each.most_abnormal.score)
    hours = (flows.time_first // HOUR_NS * HOUR_NS).tolist()
    return Findings(
        model, flows.captures, float(detector.offset_), 0.01, getattr(detector, "calibration_scores_", np.zeros(0)),
        flows.counters, flows.ignored, len(flows), int((scored.verdicts == "abnormal").sum()),
        time_first=int(flows.time_first.min()), time_last=int(flows.time_last.max()), alarms=incidents,
        n_incidents=len(incidents), n_alarms=len(incidents) + 1, flows_by_hour=dict(Counter(hours)),
        alarms_by_hour={hours[0]: len(incidents)}, hosts=hosts, scores=scored.scores,
    )  # fmt: skip


@pytest.fixture(scope="module")
def findings(detector, tables):
    return found_in(detector, tables["test"])


@pytest.fixture(scope="module")
def page(findings, detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    # Two days with a gap, so that there is a chart.
    hours = {n * HOUR_NS: 10 + n for n in range(40) if n not in (7, 8)}
    shown = replace(findings, flows_by_hour=hours, alarms_by_hour={0: 3, 9 * HOUR_NS: 1}, drift="None was found.")
    write_page(path, replace(shown, hidden={"rule 1: <known>": 7}), detector, command="docids report <x>")
    return path


@pytest.fixture(scope="module")
def report(detector, tables, tmp_path_factory):
    pytest.importorskip("matplotlib")
    path = tmp_path_factory.mktemp("report") / "report.html"
    sets = {"normal": tables["normal"], "attack <guesses>": tables["burst"], "attack calm": tables["train"][:20]}
    attacks = {"<guesses>": sets["attack <guesses>"], "calm": sets["attack calm"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 110 normal flows are too few for 0.1 %
        found = {"flow": evaluate({"model": detector}, sets["normal"], attacks)}
    explained = {name: most_abnormal(detector, flows, 1, sets["normal"])[0] for name, flows in attacks.items()}
    write_report(path, found, detector, model="office.model", sets=sets, note="A note.", explained=explained)
    return path


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = Counter(), [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_data(self, text):
        if self.lasttag not in ("style", "script"):
            self.text += text

    def all(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]

    @property
    def words(self):
        return " ".join(self.text.split())


def assert_harmless(page):
    """Assert that a page holds nothing that is executed or fetched, and no character that steers."""
    assert not set(page.tags) & {"script", "iframe", "object", "embed", "link", "form", "base", "audio", "video"}
    assert [name for _, name, _ in page.attributes if name.startswith("on")] == []
    assert all(value.startswith("data:image/png;base64,") for value in page.all("src"))
    assert all(value.startswith("#") for value in page.all("href"))
    policy = next(value for value in page.all("content") if "default-src" in value)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    assert all(character.isprintable() or character == "\n" for character in page.source)


def assert_links_lead_somewhere(page):
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.all("href")} <= set(ids)


def test_the_page_begins_with_what_was_looked_at_and_what_came_of_it(page, findings, detector):
    words = Page(page).words
    n_flagged = findings.n_flagged
    assert f"{findings.n_incidents} incidents in test.pcap, 1970-01-01 00:16:4" in words.split("Contents")[0]
    assert (
        f"{n_flagged} flows of 121 ({100 * n_flagged / 121:.3g} %) are flagged. Of as many normal flows, about 1"
        in words
    )
    assert "7 more flows are hidden by rules of the allow-list" in words
    assert "of the flows are abnormal to this model: a scan or a flood does that" in words
    assert "office.model: MultiViewDetector, views novelty, content, bytes" in words
    assert f"{detector.offset_:.4g}, for 1 % false alarms; 150 normal flows have set it" in words
    assert f"Written by docids {__version__} on" in words
    assert "Command: docids report <x>" in words
    assert "rule 1: <known>" in words
    assert "0 ignored, 121 flows" in words


def test_each_incident_has_reasons_and_what_to_do_about_it(page, findings):
    parsed = Page(page)
    parts = parsed.source.split('<details class="incident"')[1:]
    assert len(parts) == len(findings.alarms) > 1
    for part, alarm in zip(parts, findings.alarms, strict=True):
        flow = alarm.most_abnormal
        for text in (alarm.id, flow.flow.community_id[0], f"{flow.score:.4g}", *(r.view for r in flow.reasons)):
            assert text in part
        assert f"docids allow --from alarms.eve.json --id {alarm.id} --why" in part
    assert parsed.source.index("10.0.9.9:8443/udp<") > 0
    words = parsed.words
    assert "udp/8443 was never a destination here" in words
    assert "ip.addr == 10.0.0.2 && ip.addr == 10.0.9.9 && udp.port == 8443 && udp.port == 9" in words
    assert re.search(r"10\.0\.0\.1 -> 10\.0\.1\.1:80/tcp \d+ flows", words)
    assert "What is kept of the request: 'POST /login?~~%%'" in words
    assert r"'<b>\x1b[31m'" in words
    assert "packet 1, this flow" in words
    assert "packet 1, the most similar normal flow" in words


def test_links_lead_to_what_is_there(page, report):
    assert_links_lead_somewhere(Page(page))
    assert_links_lead_somewhere(Page(report))


def test_names_from_captures_are_spelled_out_and_execute_nothing(plain, tables, tmp_path):
    flows = tables["test"]
    named = replace(found_in(plain, flows, HOSTILE[0]), captures=HOSTILE * 2)
    named = replace(named, hidden=dict.fromkeys(HOSTILE, 3), drift=HOSTILE[1])
    named.hosts = {name: HostFindings(1, 1, -1.0) for name in HOSTILE}
    named.alarms = [
        replace(alarm, id=HOSTILE[1], most_abnormal=replace(alarm.most_abnormal, capture=HOSTILE[2]))
        for alarm in named.alarms
    ]
    path = tmp_path / "page.html"
    write_page(path, named, plain, command=HOSTILE[0])
    page = Page(path)
    assert_harmless(page)
    for name in HOSTILE[:2]:
        assert name in page.text
    assert r"a\u202egnp.\x1b[31m\n.pcap" in page.text
    assert page.tags["img"] == 0


def test_pages_hold_nothing_that_is_executed_or_fetched(page, report):
    assert_harmless(Page(page))
    assert_harmless(Page(report))


def test_a_page_of_nothing_says_so(plain, tmp_path):
    nothing = Findings("m", ["empty.pcap"], -1.0, None, np.zeros(0), [{"packets": 3, "non_ip": 3}], [{"ARP": 3}])
    write_page(tmp_path / "page.html", nothing, plain)
    words = Page(tmp_path / "page.html").words
    assert "0 incidents in empty.pcap" in words
    assert "No incident: 0 flows of 0 are flagged." in words
    assert "3 packets, 3 ignored (3 non ip), 0 flows" in words
    assert "3 ARP" in words
    for text in ("There are no flows.", "There are no scores.", "No source has a flagged flow.", "Not tested:"):
        assert text in words


def test_more_incidents_than_fit_are_listed_without_details(plain, findings, tmp_path):
    alarm = findings.alarms[0]
    many = [replace(alarm, id=f"id{n}") for n in range(70)]
    write_page(tmp_path / "page.html", replace(findings, alarms=many, n_incidents=1200, n_over_budget=5), plain)
    page = Page(tmp_path / "page.html")
    assert page.source.count('<details class="incident"') == 50
    assert "20 further incidents, without details" in page.words
    assert "Of 1,200, the 70 most abnormal are kept." in page.words
    assert "5 more alarms beyond the budget did not come up." in page.words


def test_host_incidents_and_ipv6_have_filters_of_their_own(plain, findings, tmp_path, write):
    flow = FlowSampler(layout="payload").flows(str(write(pcap([udp6(dport=5353, payload=b"x")]))))
    channel = replace(findings.alarms[0], most_abnormal=replace(findings.alarms[0].most_abnormal, flow=flow))
    shown = replace(findings, alarms=[channel, replace(channel, level="host", n_channels=12)])
    write_page(tmp_path / "page.html", shown, plain)
    page = Page(tmp_path / "page.html")
    filters = re.findall('Wireshark filter</dt><dd><code class="copy">(.*?)</code>', page.source)
    of_channel = "ipv6.addr == fd00::1 &amp;&amp; ipv6.addr == fd00::2 &amp;&amp; udp.port == 5353"
    assert filters == [of_channel, "ipv6.addr == fd00::1"]
    words = page.words
    assert "of one source, in 12 channels" in words
    assert "udp [fd00::1]:1000 -> [fd00::2]:5353" in words


class Network:
    """A detector that finds what it is told of flows of four packets."""

    def __init__(self, attribution, templates=None):
        self.attribution = attribution
        if templates is not None:
            self.template_flows_ = templates

    def explain(self, X, n_packets):
        return self.attribution.reshape(len(X), n_packets, -1)

    def most_similar_templates(self, X):
        return np.full(len(X), len(self.template_flows_) - 1)


def test_the_byte_map_shows_the_bytes_of_the_flow_and_of_the_most_similar_normal_one(tables):
    flow, normal = tables["burst"][0], tables["train"][[0, 1]]
    attribution = np.random.default_rng(0).normal(size=flow.X.shape)
    (shown,) = byte_maps(Network(attribution, normal.X), [flow])
    attribution, packets, similar = (of[-1].reshape(4, -1) for of in (attribution, flow.X, normal.X))
    assert len(shown.pairs) == 2
    for place, (here, there) in enumerate(shown.pairs):
        assert [cell.value for cell in here.cells] == packets[place, 8 : int(flow.kept_bytes[0, place])].tolist()
        assert [cell.value for cell in there.cells] == similar[place, 8 : int(normal.kept_bytes[1, place])].tolist()
        for column, cell in enumerate(here.cells, start=8):
            share = attribution[place, column] / attribution.max()
            assert cell.level == sum(share >= limit for limit in (0.02, 0.1, 0.25, 0.5))
            assert cell.is_same == (packets[place, column] == similar[place, column])
        assert not any(cell.level for cell in there.cells)
    raised = np.maximum(attribution, 0)
    payload = next(field for field in shown.fields if field.name == "payload")
    assert payload.share == pytest.approx(raised[payload.packet - 1, 8:].sum() / raised.sum())
    texts = [[field.text for field in packet.fields] for packet in shown.pairs[0]]
    # Packets with payload come first in a row.
    assert texts == [
        ["from the source", "16 bytes of payload", "PSH ACK"],
        ["from the source", "10 bytes of payload"],
    ]


def test_rows_of_headers_are_mapped_by_header_field(write):
    packet = tcp(5, 80, "FPU", b"\xff" * 20)
    flow = FlowSampler().flows(str(write(pcap([packet]))))
    attribution = np.zeros(flow.X.shape)
    attribution[0, [47, 16]] = 3, 1
    attribution[0, 54] = -9
    (shown,) = byte_maps(Network(attribution), [flow])
    ((here, there),) = shown.pairs
    assert (shown.has_normal, there, here.fields) == (False, None, [])
    assert bytes(cell.value for cell in here.cells[14:]) == flow.X[0, 14:74].tobytes()
    assert [(n, cell.level) for n, cell in enumerate(here.cells) if cell.level] == [(16, 3), (47, 4)]
    assert here.cells[47].name == "TCP flags"
    flags, length = shown.fields
    assert flags == (1, "TCP flags", "FIN PSH URG", None, 0.75)
    assert length == (1, "IP length", "60", None, 0.25)
    assert request_of(flow) == ""


def test_fields_are_compared_wherever_they_lie(write):
    short, alone = tcp(5, 80, "A", b"GET /", options=[]), tcp(5, 81, "A", b"POST", options=[("Timestamp", (1, 2))])
    flows = FlowSampler().flows(str(write(pcap([alone, short, short]))))
    flow, normal = flows[0], flows[1]
    attribution = np.zeros(flow.X.shape)
    attribution[0, [66, 200]] = 3, 1
    (shown,) = byte_maps(Network(attribution, normal.X), [flow])
    assert shown.fields == [(1, "payload", "'POST'", "'GET /'", 0.75), (3, "no packet", "no packet", "no packet", 0.25)]
    attribution[0, [66, 80]] = 0, 3
    (shown,) = byte_maps(Network(attribution, normal.X), [flow])
    assert shown.fields[0] == (2, "no packet", "no packet", "59 bytes", 0.75)


def test_without_a_network_there_is_the_request_alone(plain, tables, tmp_path):
    findings = found_in(plain, tables["test"])
    assert byte_maps(plain, [findings.alarms[0].most_abnormal.flow]) == [None]
    write_page(tmp_path / "page.html", findings, plain)
    page = Page(tmp_path / "page.html")
    assert "What is kept of the request" in page.words
    assert "packet 1, this flow" not in page.words


hours_of = st.dictionaries(
    st.integers(-(2**40), 2**40).map(lambda n: n % (2**21) * HOUR_NS), st.integers(0, 9), max_size=8
)


@given(hours_of, hours_of)
@settings(max_examples=100, deadline=None)
def test_no_alarm_is_lost_between_bars_and_bars_are_few(alarms, flows):
    shown = timeline(alarms, flows)
    if shown is None:
        assert not alarms
        assert not flows
        return
    assert len(shown.intervals) <= MOST_BARS
    assert sum(each.n_alarms for each in shown.intervals) == sum(alarms.values())
    assert sum(each.n_flows for each in shown.intervals) == sum(flows.values())
    assert shown.intervals[0].time <= min({*alarms, *flows})


def test_bars_stand_for_hours_as_long_as_there_are_few():
    day = {n * HOUR_NS: 1 for n in range(24)}
    assert (timeline({}, day).unit, len(timeline({}, day).intervals)) == ("hour", 24)
    assert timeline({}, {0: 1, 200 * HOUR_NS: 1}).unit == "3 hours"
    assert timeline({}, {0: 1, 24 * 80 * HOUR_NS: 1}).unit == "day"
    assert timeline({}, {0: 1, 24 * 365 * HOUR_NS: 1}).unit == "4 days"


def test_the_chart_of_scores_has_shares_and_threshold_where_they_are():
    normal, today = -np.geomspace(0.1, 10, 1000), -np.geomspace(0.1, 100, 500)
    chart = score_chart({"normal": normal, "today": np.append(today, np.nan)}, -10.0)
    assert chart.threshold == pytest.approx(100 * 2 / 3)
    assert [each.n for each in chart.distributions] == [1000, 500]
    assert chart.distributions[1].share_flagged == pytest.approx(np.mean(today < -10))
    assert chart.distributions[0].quantiles[0] == pytest.approx(1, rel=0.01)
    assert [tick.label for tick in chart.x_ticks] == ["0.1", "1", "10", "100"]
    assert [round(tick.place) for tick in chart.x_ticks] == [0, 33, 67, 100]
    assert [tick.label for tick in chart.y_ticks] == ["100 %", "10 %", "1 %", "0.1 %"]
    assert score_chart({"a": np.zeros(0)}, -1.0) is None
    for scores, threshold in ((np.zeros(5), 0.0), (np.array([3.0, -2.0]), 1.0), (np.full(4, -7.0), -7.0)):
        assert score_chart({"a": scores}, threshold).distributions[0].points.count(",") == 98


def test_an_evaluation_says_what_was_tested_and_sums_it_up(report, detector):
    page = Page(report)
    words = page.words
    assert "Evaluation of office.model: 2 attacks, 3 captures of 1970-01-01 00:16:4" in words
    assert "By flow, the ROC-AUC is" in words
    assert "false alarms among 110 normal flows" in words
    assert "least of calm" in words
    assert f"{detector.offset_:.4g}, for 1 % false alarms" in words
    assert "A note." in words
    for cell in ('<th scope="row">normal</th><td class="number">110</td>', '<td class="number">12</td>'):
        assert cell in page.source
    assert "attack &lt;guesses&gt;" in page.source


def test_an_evaluation_has_no_tables_of_dashes_and_no_empty_brackets(report):
    page = Page(report)
    assert "Not enough normal flows: it takes 1,000 of them, and there are 110." in page.words
    assert re.search(r"(\d\.\d{3}) \(\1-\1\)", page.words) is None
    assert "0.1 % false alarms" in page.words


def test_pictures_say_in_words_what_they_show(report):
    page = Page(report)
    texts = page.all("alt")
    assert len(texts) == page.tags["img"] == 4
    assert texts[0].startswith("ROC: all attacks among the normal flows")
    assert "ROC-AUC: model " in texts[0]
    assert "the line is the threshold" in texts[2]
    assert "Medians of abnormality: normal " in texts[3]
    assert all(len(base64.b64decode(value.split(",")[1])) > 1000 for value in page.all("src"))


def test_explained_flows_name_their_attack(report):
    parts = Page(report).source.split('<details class="incident"')[1:]
    assert ['<span class="who">&lt;guesses&gt;</span>' in parts[0], '<span class="who">calm</span>' in parts[1]] == [
        True
    ] * 2
    assert '<span class="when">flagged</span>' in parts[0]


def test_a_level_without_a_threshold_says_why(detector, tables, tmp_path):
    pytest.importorskip("matplotlib")
    found = Evaluation()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scored = Scored(np.array([-1.0, -2.0]), {"scan": np.array([-3.0])}, no_threshold_reason="there are 2 channels")
        found.add("model", 0, scored, level="channel", n_resamples=0)
    sets = {"normal": tables["normal"]}
    write_report(tmp_path / "r.html", {"channel": found}, detector, model="m", sets=sets, explained={})
    words = Page(tmp_path / "r.html").words
    assert "By channel, the ROC-AUC is 1.000 in the mean over attacks; there is no threshold." in words
    assert "No threshold: there are 2 channels." in words
    assert "Not enough normal channels: it takes 100 of them, and there are 2." in words


needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium to look with")
# Widths, what lies beyond the page, and the least contrast of text with what is behind it, by WCAG 2.
MEASURE = """
<script>
const light = c => c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const behind = e => { for (; e; e = e.parentElement) {
  const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c.slice(0, 3); }
  return [255, 255, 255]; };
document.querySelectorAll("details").forEach(e => e.open = true);
let least = 99, where = "";
for (const e of document.querySelectorAll("body *")) {
  if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) || e.closest("svg")) continue;
  const [a, b] = [light(rgb(getComputedStyle(e).color).slice(0, 3)), light(behind(e))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < least) { least = ratio; where = e.tagName + "." + e.className; }
}
parent.document.title = JSON.stringify({inner: innerWidth, scroll: document.documentElement.scrollWidth, least, where,
  paper: light(behind(document.body))});
</script>
"""


def browse(page, *options, folder):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def measured(page, width, scheme, folder):
    """Return what a script measures in a copy of a page, which has no policy against scripts.

    The copy is in a frame, as a window of a browser is 500 pixels wide at least.
    """
    source = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    source = html.escape(source.replace("</body>", f"{MEASURE}</body>"))
    frame = folder / "frame.html"
    frame.write_text(
        f'<meta name="color-scheme" content="light dark"><title></title>'
        f'<iframe style="border: 0" width="{width}" height="900" srcdoc="{source}"></iframe>'
    )
    options = ["--window-size=1400,1000", "--hide-scrollbars", f"--blink-settings=preferredColorScheme={scheme}"]
    dumped = browse(frame, *options, "--dump-dom", folder=folder / "profile")
    return json.loads(re.search("<title>(.*?)</title>", dumped.stdout)[1])


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(390, 0), (1280, 1)], ids=["phone, dark", "desk, light"])
@pytest.mark.parametrize("name", ["page", "report"])
def test_nothing_is_cut_and_all_text_can_be_read(name, width, scheme, request, tmp_path):
    found = measured(request.getfixturevalue(name), width, scheme, tmp_path)
    assert found["inner"] == width
    assert found["scroll"] == width
    assert found["least"] >= 4.5, found["where"]
    assert (found["paper"] < 0.1) == (scheme == 0)


@needs_browser
def test_a_browser_has_nothing_to_complain_about_and_prints_all_of_the_page(page, tmp_path):
    folder = tmp_path / "profile"
    loaded = browse(page, f"--print-to-pdf={tmp_path / 'page.pdf'}", folder=folder)
    assert "CONSOLE" not in loaded.stderr
    closed = tmp_path / "closed.html"
    closed.write_text(page.read_text(encoding="utf-8").replace("details::details-content", "x"), encoding="utf-8")
    browse(closed, f"--print-to-pdf={tmp_path / 'closed.pdf'}", folder=folder)
    printed, without = (
        len(re.findall(rb"/Type /Page\b", (tmp_path / f"{name}.pdf").read_bytes())) for name in ("page", "closed")
    )
    assert printed > without > 0


def test_the_command_scores_captures_and_writes_a_page(detector, tables, tmp_path, capsys):
    pytest.importorskip("sklearn_docids.monitoring")
    model, output = str(tmp_path / "office.model"), tmp_path / "page.html"
    save_detector(detector, model, sampler=FlowSampler(layout="payload"))
    (capture,) = tables["test"].captures
    assert main(["report", capture, "--model", model, "--output", str(output)]) == 0
    out = capsys.readouterr()
    assert (out.out, re.search(rf"121 flows scored, \d+ incidents, {output} written", out.err) is None) == ("", False)
    words = Page(output).words
    assert f"Command: docids report {capture} --model {model} --output {output}" in words
    assert "udp/8443 was never a destination here" in words
    assert main(["report", capture, "--model", model, "--output", capture]) == 1
    assert f"--output {capture} is an input of this command" in capsys.readouterr().err
    assert main(["report", capture, "--model", model, "--output", str(tmp_path / "none" / "page.html")]) == 1
    assert "the folder of --output" in capsys.readouterr().err
