"""The published schedule of CIC-IDS-2017 as a table: every rule, window borders, flipped orientation."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from captures import pcap, tcp

from sklearn_docids import FlowSampler
from sklearn_docids.datasets._labels import NORMAL, NOT_ATTEMPTED, label_flows, read_schedule, within

RULES = read_schedule("cic_ids_2017.csv")
ATTACKER, WEB = "172.16.0.1", "192.168.10.50"
MICROSECOND = 1000


@dataclass
class Flow:
    """A TCP connection to be written as packets."""

    start: int  # ns
    source: str = ATTACKER
    destination: str = WEB
    source_port: int = 40000
    destination_port: int = 80
    forward: list = field(default_factory=lambda: [0, 0, 300])  # payload of each packet
    backward: list = field(default_factory=lambda: [0, 10])
    answer_first: bool = False

    def packets(self):
        ends = {"sport": self.source_port, "dport": self.destination_port, "src": self.source, "dst": self.destination}
        back = {"sport": self.destination_port, "dport": self.source_port, "src": self.destination, "dst": self.source}
        sides = [(ends, self.forward), (back, self.backward)]
        return [
            tcp(flags="A", payload=b"x" * size, **fields)
            for fields, sizes in (sides[::-1] if self.answer_first else sides)
            for size in sizes
        ]


def labelled(write, **settings):
    flow = Flow(**settings)
    packets = flow.packets()
    path = write(pcap(packets, times=[flow.start / 1e9] * len(packets)))
    flows = FlowSampler(fields="raw").flows(path)
    assert flows.time_first.tolist() == [flow.start]
    labels, attempted = label_flows(flows, RULES)
    return str(labels[0]), int(attempted[0])


def at(text):
    """Return a time of the schedule, UTC, as ns."""
    return int(np.datetime64(text, "ns").astype(np.int64))


NONE = NORMAL, NOT_ATTEMPTED
TUESDAY, WEDNESDAY, THURSDAY, FRIDAY = (f"2017-07-{day:02d}T" for day in (4, 5, 6, 7))
BOT_HOST, CONTROL = "192.168.10.15", "205.174.165.73"
FTP = {"start": at(TUESDAY + "12:30"), "destination_port": 21}
SSH = {"start": at(TUESDAY + "18:00"), "destination_port": 22}
SLOWLORIS = {"start": at(WEDNESDAY + "13:00")}
SLOWHTTPTEST = {"start": at(WEDNESDAY + "13:20")}
HULK = {"start": at(WEDNESDAY + "14:00")}
GOLDENEYE = {"start": at(WEDNESDAY + "14:15")}
HEARTBLEED = {
    "start": at(WEDNESDAY + "18:12:30"), "destination": "192.168.10.51", "source_port": 45022, "destination_port": 444
}  # fmt: skip
BRUTE, XSS, SQL = ({"start": at(THURSDAY + time)} for time in ("12:30", "13:20", "13:40"))
DROPBOX = {
    "start": at(THURSDAY + "17:30"), "source": "192.168.10.8", "destination": CONTROL, "destination_port": 444
}  # fmt: skip
COOL_DISK = {**DROPBOX, "start": at(THURSDAY + "19:00"), "source": "192.168.10.25"}
SCAN_1 = {"start": at(THURSDAY + "17:00:40"), "destination": "192.168.10.51", "source_port": 50122}
SCAN_2 = {"start": at(THURSDAY + "17:34"), "source": "192.168.10.8", "destination": "192.168.10.5"}
SCAN_3 = {"start": at(THURSDAY + "18:30"), "source": "192.168.10.8", "destination": "192.168.10.16"}
BOT = {"start": at(FRIDAY + "13:30"), "source": BOT_HOST, "destination": CONTROL, "destination_port": 8080}
PORT_SCAN, DDOS = ({"start": at(FRIDAY + time)} for time in ("17:00", "19:00"))
EMPTY = {"forward": [0, 0]}
CASES = [
    (FTP, "FTP-Patator", -1),
    ({**FTP, **EMPTY}, "FTP-Patator", 0),
    ({**FTP, "source_port": 52108}, "FTP-Patator", 2),
    ({**FTP, "destination_port": 80}, *NONE),
    (SSH, "SSH-Patator", -1),
    ({**SSH, **EMPTY}, "SSH-Patator", 0),
    ({**SSH, "forward": [0, 32], "backward": [0]}, "SSH-Patator", 3),
    ({**SSH, "forward": [0, 33], "backward": [0]}, "SSH-Patator", -1),
    ({**SSH, "forward": [0, 32], "backward": [1]}, "SSH-Patator", -1),
    (SLOWLORIS, "DoS slowloris", -1),
    ({**SLOWLORIS, **EMPTY}, "DoS slowloris", 0),
    ({**SLOWLORIS, **EMPTY, "source_port": 33360}, "DoS slowloris", 2),
    (SLOWHTTPTEST, "DoS Slowhttptest", -1),
    ({**SLOWHTTPTEST, **EMPTY}, "DoS Slowhttptest", 0),
    ({**SLOWHTTPTEST, **EMPTY, "backward": []}, "DoS Slowhttptest", 6),
    ({**SLOWHTTPTEST, "source_port": 33372}, "DoS Slowhttptest", 2),
    (HULK, "DoS Hulk", -1),
    ({**HULK, **EMPTY}, "DoS Hulk", 0),
    ({**HULK, "forward": [0, 281]}, "DoS Hulk", 3),
    ({**HULK, "forward": [0, 282]}, "DoS Hulk", -1),
    ({**HULK, "source_port": 48678}, *NONE),
    ({**HULK, "source_port": 48678, "start": at(WEDNESDAY + "13:44")}, "DoS Hulk", 2),
    (GOLDENEYE, "DoS GoldenEye", -1),
    ({**GOLDENEYE, **EMPTY}, "DoS GoldenEye", 0),
    (HEARTBLEED, "Heartbleed", -1),
    ({**HEARTBLEED, **EMPTY}, "Heartbleed", 0),
    ({**HEARTBLEED, "source_port": 45023}, *NONE),
    ({**BRUTE, "start": at(THURSDAY + "12:16")}, "Web Attack - Brute Force", 2),
    ({**BRUTE, "forward": [9] * 21}, "Web Attack - Brute Force", -1),
    ({**BRUTE, "forward": [9] * 20}, *NONE),
    ({**BRUTE, "source_port": 44464}, "Web Attack - Brute Force", -1),
    ({**BRUTE, "forward": [0] * 20}, "Web Attack - Brute Force", 0),
    ({**BRUTE, "forward": [1] * 5, "backward": [0] * 5}, "Web Attack - Brute Force", 4),
    ({**XSS, "forward": [9] * 150}, "Web Attack - XSS", -1),
    ({**XSS, "forward": [9] * 149}, "Web Attack - XSS", 2),
    ({**XSS, **EMPTY}, "Web Attack - XSS", 0),
    ({**XSS, "source_port": 36180}, *NONE),
    (SQL, "Web Attack - Sql Injection", -1),
    ({**SQL, "start": at(THURSDAY + "13:35:40"), "source_port": 36184}, "Web Attack - Sql Injection", 2),
    ({**SQL, "start": at(THURSDAY + "13:35:40"), **EMPTY}, "Web Attack - Sql Injection", 0),
    (DROPBOX, "Infiltration", -1),
    ({**DROPBOX, **EMPTY}, "Infiltration", 0),
    ({**DROPBOX, "start": at(THURSDAY + "17:14"), "source": "192.168.10.9"}, "Infiltration", 2),
    (COOL_DISK, "Infiltration", -1),
    ({**COOL_DISK, **EMPTY}, "Infiltration", 0),
    (SCAN_1, "Infiltration - Portscan", -1),
    ({**SCAN_1, "source_port": 50123}, *NONE),
    (SCAN_2, "Infiltration - Portscan", -1),
    (SCAN_3, "Infiltration - Portscan", -1),
    ({**SCAN_3, "destination": WEB}, *NONE),
    ({**SCAN_3, "destination": WEB, "forward": [408]}, "Infiltration - Portscan", -1),
    ({**SCAN_3, "destination": WEB, "forward": [1400] * 14 + [914]}, *NONE),
    ({**SCAN_3, "destination": WEB, "forward": [1400] * 14 + [915]}, "Infiltration - Portscan", -1),
    (BOT, "Bot", -1),
    ({**BOT, **EMPTY}, "Bot", 0),
    ({**BOT, "start": at(FRIDAY + "15:00")}, "Bot", 1),
    ({**BOT, "source": "192.168.10.12"}, *NONE),
    (PORT_SCAN, "PortScan", -1),
    ({**PORT_SCAN, "start": at(FRIDAY + "18:00")}, "PortScan", -1),
    ({**PORT_SCAN, "start": at(FRIDAY + "17:30")}, *NONE),
    (DDOS, "DDoS", -1),
    ({**DDOS, **EMPTY}, "DDoS", 0),
]


@pytest.mark.parametrize(("settings", "label", "attempted"), CASES)
def test_a_flow_gets_the_label_of_the_schedule_both_ways_round(write, settings, label, attempted):
    assert labelled(write, **settings) == (label, attempted)
    if settings.get("backward") != []:
        assert labelled(write, **settings, answer_first=True) == (label, attempted)


def test_every_rule_is_pinned_by_a_case():
    reached = set()
    for settings, label, attempted in CASES:
        start = Flow(**settings).start
        reached |= {
            i for i, rule in enumerate(RULES)
            if (rule.label, rule.attempted) == (label, attempted) and rule.start <= start <= rule.end
        }  # fmt: skip
    assert reached == set(range(len(RULES)))


WHOLE_WINDOWS = [FTP, SSH, HULK, GOLDENEYE, HEARTBLEED, DROPBOX, SCAN_1, SCAN_2, BOT, PORT_SCAN, DDOS]


@pytest.mark.parametrize("settings", WHOLE_WINDOWS)
def test_the_borders_of_a_window_are_inside_it_and_a_microsecond_on_is_not(write, settings):
    label, _ = labelled(write, **settings)
    (rule,) = [r for r in RULES if r.label == label and r.attempted == -1 and r.start <= settings["start"] <= r.end]
    first, last = -(-rule.start // MICROSECOND) * MICROSECOND, rule.end // MICROSECOND * MICROSECOND
    for start, expected in (
        (first, label), (last, label), (first - MICROSECOND, NORMAL), (last + MICROSECOND, NORMAL)
    ):  # fmt: skip
        assert labelled(write, **{**settings, "start": start})[0] == expected


@pytest.mark.parametrize(
    ("cell", "allowed"),
    [("2", [2]), ("1 3", [1, 3]), ("!1 3", [0, 2, 4]), ("1..3", [1, 2, 3]), ("..1", [0, 1]), ("3..", [3, 4])],
)
def test_cells_of_the_table(cell, allowed):
    assert np.flatnonzero(within(np.arange(5), cell)).tolist() == allowed
