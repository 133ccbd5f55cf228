# SPDX-License-Identifier: BSD-3-Clause
"""Watch a stream for minutes, and a folder through fifty kills; print what was conserved, and how fast it was.

Stream: dialogues of `make_traffic`, each with ports and addresses of its own, go through a pipe at a given rate,
stamped with the time at which they are sent. The watching process has one core. It counts its packets and flows; the
sender has counted them, too. The delay of a verdict counts from the flow's last packet, or from when it has idled out.

Folder: a capture is written into a folder file by file. The watching process is killed at random times and started
again, and the flows that it has judged are compared with those of a run without kills.

    python benchmarks/watch.py                        # ten minutes at 2,000 flows/s, fifty kills
    python benchmarks/watch.py --minutes 3 --kills 10
    python benchmarks/watch.py --model office.model   # to which all flows are abnormal, as in a flood

The model has learned the same dialogues, and flags few of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sklearn_docids import FlowSampler, MultiViewDetector, save_detector
from sklearn_docids._alarms.collect import Scored
from sklearn_docids._watch.alarms import AlarmDesk
from sklearn_docids._watch.folders import FolderSource
from sklearn_docids._watch.signals import Signals
from sklearn_docids._watch.verdicts import Judge
from sklearn_docids._watch.watcher import Plan, Watcher
from sklearn_docids.capture.containers import Capture
from sklearn_docids.cli._inputs import loaded_detector
from sklearn_docids.datasets import make_traffic

TICKS_PER_S = 20
HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
RECORD = 16
QUARTERS = (0.25, 0.5, 1)
SOURCE, DESTINATION, SOURCE_PORT, DESTINATION_PORT = 26, 30, 34, 36  # in a frame
# A five-tuple comes again after 480,000 flows: at 2,000 a second, when the one before is forgotten.
FIRST_PORT, N_PORTS, N_NETWORKS = 1024, 60_000, 8


class Dialogues:
    """Flows of a capture, cut into steps: the first packets of all, then the second ones, and so on."""

    def __init__(self, path: str, n_flows: int):
        by_flow: dict[bytes, list[bytes]] = {}
        with open(path, "rb") as stream:
            for data, records in Capture(stream, path).blocks():
                for record in records:
                    frame = data[record["start"] : record["start"] + record["captured_length"]].tobytes()
                    by_flow.setdefault(self._name(frame), []).append(frame)
        flows = list(by_flow.values())[:n_flows]
        assert len(flows) == n_flows, "the capture has too few flows"
        self.n_steps = max(map(len, flows))
        self.steps = [self._step(flows, step) for step in range(self.n_steps)]

    @staticmethod
    def _name(frame: bytes) -> bytes:
        ends = sorted([frame[SOURCE:DESTINATION] + frame[34:36], frame[DESTINATION:34] + frame[36:38]])
        return frame[23:24] + b"".join(ends)

    def _step(self, flows: list[list[bytes]], step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
        """Return bytes of records, places of their times, of the client's port and network, and numbers of flows."""
        parts, times, ports, networks, numbers, at = [], [], [], [], [], 0
        for number, packets in enumerate(flows):
            if step < len(packets):
                frame = packets[step]
                is_forward = frame[SOURCE:DESTINATION] == packets[0][SOURCE:DESTINATION]
                times.append(at)
                ports.append(at + RECORD + (SOURCE_PORT if is_forward else DESTINATION_PORT))
                networks.append(at + RECORD + (SOURCE if is_forward else DESTINATION) + 1)
                numbers.append(number)
                parts.append(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)
                at += RECORD + len(frame)
        places = [np.array(each, np.int64) for each in (times, ports, networks, numbers)]
        return (np.frombuffer(b"".join(parts), np.uint8).copy(), *places)  # type: ignore[return-value]

    def packets(self, step: int, group: int, now: float) -> tuple[memoryview, int]:
        """Return the packets of a step of a group of flows, as they are sent now, and their number."""
        data, times, ports, networks, numbers = self.steps[step]
        micros = int(now * 1e6)
        stamp = np.frombuffer(struct.pack("<II", micros // 10**6, micros % 10**6), np.uint8)
        n_flows = len(self.steps[0][4])
        number = group * n_flows + numbers
        port, network = FIRST_PORT + number % N_PORTS, number // N_PORTS % N_NETWORKS
        for i in range(8):
            data[times + i] = stamp[i]
        data[ports], data[ports + 1], data[networks] = port >> 8, port & 0xFF, network
        return data.data, len(times)


def send(path: str, out: int, rate: int, seconds: float) -> None:
    """Write dialogues to a pipe at a rate; print how many packets and flows there were."""
    flows = Dialogues(path, rate // TICKS_PER_S)
    n_ticks, n_packets, late = int(seconds * TICKS_PER_S), 0, 0.0
    os.write(out, HEADER)
    begun = time.monotonic()
    for tick in range(n_ticks + flows.n_steps - 1):
        ahead = begun + tick / TICKS_PER_S - time.monotonic()
        late = max(late, -ahead)
        time.sleep(max(0.0, ahead))
        for step in range(flows.n_steps):
            if 0 <= tick - step < n_ticks:
                data, n = flows.packets(step, tick - step, time.time())
                while data:
                    data = data[os.write(out, data) :]
                n_packets += n
    print(json.dumps({"packets": n_packets, "flows": n_ticks * len(flows.steps[0][4]), "late_s": round(late, 2)}))


def memory_mb(process: int) -> float:
    """Return the resident memory of a process; 0 if it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def stream_run(model: str, capture: str, rate: int, minutes: float, core: str, folder: Path) -> list[tuple[str, str]]:
    """Watch a stream; return rows of the table."""
    command = [sys.executable, "-W", "ignore", "-m", "sklearn_docids", "watch", "-", "--model", model]
    command += ["--stats", "10", "-o", str(folder / "alarms.json")]
    if core:
        command = ["taskset", "-c", core, *command]
    sender = [sys.executable, __file__, "--send", capture, "--rate", str(rate), "--minutes", str(minutes)]
    with subprocess.Popen(sender, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as sending:
        watching = subprocess.Popen(command, stdin=sending.stdout, stderr=subprocess.DEVNULL)
        memory = []
        while watching.poll() is None:
            time.sleep(1)
            memory.append(memory_mb(watching.pid))
        assert sending.stderr is not None
        sent = json.loads(sending.stderr.read())
        assert watching.returncode == 0, watching.returncode
    lines = [json.loads(line) for line in (folder / "alarms.json").read_text().splitlines()]
    stats = [line["metadata"]["flowints"] for line in lines if line["event_type"] == "stats"]
    last = stats[-1]
    fates = ("sampled", "non_ip", "other_protocol", "fragment", "short", "malformed", "unknown_link_type", "duplicate")
    assert last["packets"] == sum(last[fate] for fate in fates) == sent["packets"], (last, sent)
    assert last["flows_begun"] == last["flows_scored"] == sent["flows"], (last, sent)
    assert last["flows_open"] == 0, last
    steady = [each for each in stats[:-1] if "delay_p99_ms" in each][1:]
    medians, tails = ([each[name] for each in steady] for name in ("delay_p50_ms", "delay_p99_ms"))
    memory = list(filter(None, memory))[:-4]  # the last flows, open until then, are judged at once
    half = memory[len(memory) // 2 :]
    return [
        ("flows sent, judged", f"{sent['flows']:,}, {last['flows_scored']:,}"),
        ("packets sent, received", f"{sent['packets']:,}, {last['packets']:,}"),
        ("sender late at most, s", f"{sent['late_s']}"),
        ("flows flagged, alarms", f"{last['flagged']:,}, {last['alarms']:,}"),
        ("flows evicted", f"{last['flows_evicted']:,}"),
        ("delay of verdicts, median of medians, ms", f"{np.median(medians):.0f}"),
        ("99th percentile, median and largest of 10 s, ms", f"{np.median(tails):.0f}, {max(tails)}"),
        (
            "memory at a quarter, half, end, MB",
            ", ".join(f"{memory[int(q * (len(memory) - 1))]:.0f}" for q in QUARTERS),
        ),
        ("memory in the second half, largest to smallest", f"{max(half) / min(half):.3f}"),
    ]


class Recorder(AlarmDesk):
    """Writes a line per judged flow."""

    def __init__(self, path: str):
        self._file = open(path, "a", encoding="ascii")  # noqa: SIM115 - as long as the process

    def add_packets(self, data: np.ndarray, records: np.ndarray) -> None:
        """Take no packets."""

    def take(self, scored: Scored) -> None:
        """Write lines."""
        flows = scored.flows
        for record, score in zip(flows.rows.records, scored.scores, strict=True):
            self._file.write(f"{record.item()[1:]} {score:.6f}\n")
        self._file.flush()

    def counters(self) -> dict[str, int]:
        """Count nothing."""
        return {}

    def write_stats(self, counters: object, time_ns: int) -> None:
        """Write none."""

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        os.fsync(self._file.fileno())

    @property
    def drift(self) -> str:
        """None is looked for."""
        return ""


def watch_folder(folder: str, model: str, state: str, record: str) -> None:
    """Watch a folder until a signal."""
    with Signals() as signals:
        judge = Judge(loaded_detector(model))
        source = FolderSource(folder, signals, settle=0.5, note=print)
        plan = Plan(state=state, state_every=0.3, stats_every=3600)
        Watcher(source, judge, Recorder(record), signals, plan, note=print, reload=lambda judge: judge).run()


def write_files(capture: str, folder: Path, n_files: int, seconds: float) -> list[Path]:
    """Write files of a rotating capture whose flows go on from one to the next."""
    flows = Dialogues(capture, 100)
    begun, paths = time.time() - n_files * seconds, []
    ticks_per_file = int(seconds * TICKS_PER_S)
    for number in range(n_files):
        paths.append(folder / f"part{number:05d}.pcap")
        with open(paths[-1], "wb") as file:
            file.write(HEADER)
            for tick in range(number * ticks_per_file, (number + 1) * ticks_per_file):
                for step in range(min(flows.n_steps, tick + 1)):
                    file.write(flows.packets(step, tick - step, begun + tick / TICKS_PER_S)[0])
    return paths


def is_read(state: Path, n_files: int) -> bool:
    """Whether a state says that all files were read to their ends."""
    try:
        with open(state, "rb") as file:
            files = json.loads(file.readline())["files"]
    except FileNotFoundError:
        return False
    return len(files) == n_files and all(each["size"] >= 0 for each in files.values())


def folder_run(paths: list[Path], model: str, folder: Path, n_kills: int, seed: int) -> tuple[list[str], int]:
    """Watch files that come one after the other, with kills; return the lines of judged flows, and the starts."""
    rng = random.Random(seed)
    folder.mkdir()
    spool, state, record = folder / "spool", folder / "state", folder / "record"
    spool.mkdir()
    command = [sys.executable, "-W", "ignore", __file__, "--watch", str(spool), "--model", model]
    command += ["--state", str(state), "--record", str(record)]
    waiting, done, n_starts = list(paths), False, 0
    while not done:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as watching:
            n_starts += 1
            kill_at = time.monotonic() + rng.uniform(2.0, 6.0) if n_starts <= n_kills else float("inf")
            while time.monotonic() < kill_at and not done:
                if waiting and len(waiting) > 2 * (n_kills - n_starts):
                    path = waiting.pop(0)
                    os.link(path, spool / f".{path.name}")
                    os.rename(spool / f".{path.name}", spool / path.name)
                    os.utime(spool / path.name)
                time.sleep(rng.uniform(0.2, 0.8))
                done = not waiting and n_starts > n_kills and is_read(state, len(paths))
            watching.send_signal(signal.SIGTERM if done else signal.SIGKILL)
    # A kill may cut a line.
    lines = [line for line in record.read_text().splitlines() if line.startswith("(") and line.count("(") == 1]
    return lines, n_starts


def kills_table(model: str, capture: str, n_kills: int, folder: Path) -> list[tuple[str, str]]:
    """Compare a run with kills with one without."""
    source = folder / "files"
    source.mkdir()
    paths = write_files(capture, source, 2 * n_kills + 20, 2.0)
    plain, _ = folder_run(paths, model, folder / "plain", 0, 0)
    killed, n_starts = folder_run(paths, model, folder / "killed", n_kills, 1)
    names = [{line.rpartition(" ")[0] for line in lines} for lines in (plain, killed)]
    return [
        ("kills", f"{n_starts - 1}"),
        ("files, flows judged without kills", f"{len(paths)}, {len(names[0]):,}"),
        ("flows lost by kills", f"{len(names[0] - names[1])}"),
        ("flows cut by kills", f"{len(names[1] - names[0])}"),
        ("flows judged again", f"{len(killed) - len(names[1]):,}"),
        ("flows with another score", f"{len(set(killed) - set(plain)):,}"),
    ]


def made_model(folder: Path, capture: str, rate: int) -> str:
    """Write a model of the traffic: some seconds of it, from all networks."""
    flows, path = Dialogues(capture, rate // TICKS_PER_S), folder / "train.pcap"
    n_flows = len(flows.steps[0][4])
    groups = [network * N_PORTS // n_flows + 1 + i for network in range(N_NETWORKS) for i in range(5)]
    with open(path, "wb") as file:
        file.write(HEADER)
        for place, group in enumerate(groups):
            for step in range(flows.n_steps):
                late = random.Random(place * flows.n_steps + step).uniform(0, 0.02)
                file.write(flows.packets(step, group, 1e9 + place + step / TICKS_PER_S + late)[0])
    sampler = FlowSampler(layout="payload", output="flows", random_state=0)
    detector = MultiViewDetector(views=("statistics", "novelty"), random_state=0).fit(sampler.transform(path))
    save_detector(detector, folder / "model", sampler=sampler)
    return str(folder / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=2000, help="flows per second")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--model")
    parser.add_argument("--core", default="0", help="core of the watching process; empty: any")
    for name in ("--send", "--watch", "--state", "--record"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.send:
        sys.stdout, out = sys.stderr, os.dup(1)
        send(args.send, out, args.rate, 60 * args.minutes)
        return
    if args.watch:
        watch_folder(args.watch, args.model, args.state, args.record)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        traffic = make_traffic(folder, n_flows=600, n_attacks=1, random_state=0)
        capture = str(traffic.train)
        model = args.model or made_model(folder, capture, args.rate)
        rows = []
        if args.minutes:
            rows += stream_run(model, capture, args.rate, args.minutes, args.core, folder)
        if args.kills:
            rows += kills_table(model, capture, args.kills, folder)
    print("| measured | value |\n|---|---|")
    for row in rows:
        print(f"| {row[0]} | {row[1]} |")


if __name__ == "__main__":
    main()
