"""What sampling costs: CPU time beside reading the file and beside other tools, then memory and start-up.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py speed CAPTURE [--runs 5] [--without nfstream ...]
    OMP_NUM_THREADS=1 python benchmarks/sampling.py limits [--large CAPTURE]

``speed`` measures the default settings, with ``fields="raw"`` as a case of its own, also on a capture of large packets
that it writes itself. Cases take turns in one run, in CPU seconds (user and system, child processes included) of one
thread, after a warm-up of compiled code and page cache; medians are printed, as ratios to FlowSampler and to reading.
Before each case some memory is written to and given back, because a virtual machine may have to fetch memory that
nobody has used for seconds from its host, at whose expense is luck.

The kernel copies a file several times slower to some places in memory than to the beginning of a page; a bytearray of
1 MB begins 16 or 32 bytes behind one, so both are measured: "read" as a plain script does it, and "read, page-aligned".
"""

import argparse
import contextlib
import gzip
import mmap
import os
import random
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from sklearn_docids import FlowSampler

BUFFER_BYTES = 2**20
FILE_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1)
SAMPLER, RAW = FlowSampler(), FlowSampler(fields="raw")


# ---------------------------------------------------------------------------------------------------------------------
# Cases


def read_into(path, buffer):
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def read(path):
    read_into(path, bytearray(BUFFER_BYTES))


def read_aligned(path):
    read_into(path, mmap.mmap(-1, BUFFER_BYTES))


def sample(path):
    return SAMPLER.flows(path)


def sample_raw(path):
    return RAW.flows(path)


def write(path):
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        SAMPLER.write(path, folder)


def tcpdump(path):
    subprocess.run(["tcpdump", "-r", path, "-w", "/dev/null"], check=True, stderr=subprocess.DEVNULL)


def dpkt_reader(path):
    import dpkt

    with open(path, "rb") as file:
        return sum(1 for _ in dpkt.pcap.Reader(file))


def dpkt_by_hand(path):
    """Read the five-tuple with slices: the least Python can do."""
    import dpkt

    five_tuples = set()
    with open(path, "rb") as file:
        for _, data in dpkt.pcap.Reader(file):
            kind = data[12:14]
            if kind == b"\x08\x00" and data[23:24] in (b"\x06", b"\x11"):
                ports = 14 + (data[14] & 15) * 4
                five_tuples.add((data[26:34], data[23], data[ports : ports + 4]))
            elif kind == b"\x86\xdd" and data[20:21] in (b"\x06", b"\x11"):
                five_tuples.add((data[22:54], data[20], data[54:58]))
    return five_tuples


def nfstream_flows(path):
    from nfstream import NFStreamer

    streamer = NFStreamer(
        source=path, statistical_analysis=False, n_dissections=0, idle_timeout=120, active_timeout=10**6, n_meters=1
    )
    return sum(1 for _ in streamer)


def scapy_raw(path):
    from scapy.utils import RawPcapReader

    with RawPcapReader(path) as reader:
        return sum(1 for _ in reader)


CASES = {
    "read": read,
    "read, page-aligned": read_aligned,
    "FlowSampler.flows": sample,
    "FlowSampler.flows, raw": sample_raw,
    "FlowSampler.write": write,
    "tcpdump -w /dev/null": tcpdump,
    "dpkt reader": dpkt_reader,
    "dpkt, five-tuple by hand": dpkt_by_hand,
    "scapy raw reader": scapy_raw,
    "nfstream, statistics off": nfstream_flows,
}


def cpu_seconds():
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def touch_memory(n_bytes=2**30):
    np.zeros(n_bytes, np.uint8)[::4096] = 1


def available(names):
    """Return the cases whose tool is here, and say which are not."""
    missing = [] if shutil.which("tcpdump") else ["tcpdump -w /dev/null"]
    for name, module in (("dpkt", "dpkt"), ("nfstream", "nfstream")):
        try:
            __import__(module)
        except ImportError:
            missing += [case for case in names if case.startswith(name)]
    for case in missing:
        print(f"not installed: {case}")
    return [case for case in names if case not in missing]


def measure(path, n_runs, without):
    names = available([name for name in CASES if not any(name.startswith(start) for start in without)])
    flows = sample(path)
    n_packets, n_flows = flows.counters[0]["packets"], len(flows)
    del flows
    size = os.path.getsize(path)
    for name in names[:6]:  # the others have nothing to warm up
        CASES[name](path)
    seconds = {name: [] for name in names}
    for _ in range(n_runs):
        for name in names:
            touch_memory()
            began = cpu_seconds()
            CASES[name](path)
            seconds[name].append(cpu_seconds() - began)
    ours = statistics.median(seconds["FlowSampler.flows"])
    floors = [statistics.median(seconds[name]) for name in names[:2]]
    print(f"\n{size / 1e9:.2f} GB, {n_packets:,} packets, {n_flows:,} flows, {n_runs} runs")
    print(f"FlowSampler.flows: {ours / n_packets * 1e9:.0f} ns a packet, {size / ours / 1e9:.2f} GB/s")
    pairs = zip(seconds["FlowSampler.flows"], seconds["FlowSampler.flows, raw"], strict=True)
    print(f"default / raw, median of the runs' ratios: {statistics.median(a / b for a, b in pairs):.3f}\n")
    print("| case | CPU s, median (lowest-highest) | x FlowSampler.flows | x read | x read, page-aligned |")
    print("|---|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        ratios = " | ".join(f"{median / other:.2f}" for other in (ours, *floors))
        print(f"| {name} | {median:.3f} ({min(values):.3f}-{max(values):.3f}) | {ratios} |")


def large_packets(path, n_packets=1_050_000, seed=0):
    """Write a capture of large packets: about 930 bytes on average, 26 a flow, flows of a few seconds, side by side."""
    rng = random.Random(seed)
    payload = rng.randbytes(2000)
    live, n_started = [], 0
    with open(path, "wb") as file:
        file.write(FILE_HEADER)
        for i in range(n_packets):
            if len(live) < 400:
                n_started += 1
                ports = struct.pack(">HH", 1024 + n_started % 60_000, rng.choice((80, 443, 8080)))
                live.append([struct.pack(">I", 0x0A000000 + n_started), ports, rng.randint(16, 36)])
            flow = rng.randrange(len(live))
            address, ports, left = live[flow]
            live[flow][2] = left - 1
            if left == 1:
                live[flow] = live[-1]
                live.pop()
            size = 1460 if rng.random() < 0.58 else rng.randint(0, 200)
            tcp = ports + struct.pack(">IIBBHHH", i, 0, 0x50, 0x10, 64_000, 0, 0)
            ip = struct.pack(">BBHHHBBH", 0x45, 0, 40 + size, i & 0xFFFF, 0, 64, 6, 0) + address + b"\xc0\x00\x02\x01"
            packet = bytes.fromhex("0200000000010200000000020800") + ip + tcp + payload[i % 500 : i % 500 + size]
            file.write(struct.pack("<IIII", 1_700_000_000 + i // 2000, i % 2000 * 500, len(packet), len(packet)))
            file.write(packet)


def speed(args):
    measure(args.capture, args.runs, args.without)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = os.path.join(folder, "large.pcap")
        large_packets(path)
        measure(path, args.runs, args.without)


# ---------------------------------------------------------------------------------------------------------------------
# Limits: each in a process of its own, so that none sees the memory of another


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def small_capture(path):
    with open(path, "wb") as file:
        file.write(FILE_HEADER + flood(1))


def flood(n_flows, address=0x0A000000):
    """Return records of one SYN each, from as many sources."""
    first = bytes.fromhex("0200000000010200000000020800") + struct.pack(
        ">BBHHHBBHII", 0x45, 0, 40, 0, 0, 64, 6, 0, 0, 0xC0000201
    )
    packet = np.frombuffer(first + struct.pack(">HHIIBBHHH", 40_000, 80, 0, 0, 0x50, 2, 64_000, 0, 0), np.uint8)
    records = np.zeros((n_flows, 16 + len(packet)), np.uint8)
    header = np.zeros((n_flows, 4), "<u4")
    header[:, 0] = 1_700_000_000 + np.arange(n_flows) // 100_000
    header[:, 2:] = len(packet)
    records[:, :16] = header.view(np.uint8)
    records[:, 16:] = packet
    records[:, 42:46] = (address + np.arange(n_flows)).astype(">u4")[:, None].view(np.uint8)
    return records.tobytes()


def start_up(folder):
    """CPU seconds of a process that samples a small capture, compiled code on disk; with the import alone beside."""
    path = os.path.join(folder, "small.pcap")
    small_capture(path)
    codes = {
        "import sklearn.base": "import sklearn.base",
        "import sklearn_docids.capture.flows": "import sklearn_docids.capture.flows",
        "FlowSampler().transform": f"from sklearn_docids import FlowSampler; FlowSampler().transform({path!r})",
    }
    for name, code in codes.items():
        seconds = []
        for _ in range(6):
            began = cpu_seconds()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds.append(cpu_seconds() - began)
        print(f"start-up, {name}: {statistics.median(seconds[1:]):.2f} CPU s")


def syn_flood(folder):
    path = os.path.join(folder, "flood.pcap")
    with open(path, "wb") as file:
        file.write(FILE_HEADER + flood(1_000_000))
    small_capture(os.path.join(folder, "small.pcap"))
    sample(os.path.join(folder, "small.pcap"))
    before = resident_bytes()
    with peak() as highest:
        flows = sample(path)
    assert len(flows) == 1_000_000
    print(f"SYN flood, 1,000,000 flows: at most {(highest() - before) / len(flows):.0f} bytes each")


@contextlib.contextmanager
def peak():
    """Follow the highest resident memory of this process from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    yield lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def collisions(folder):
    """Sources and ports whose sum, exclusive or and low bits agree, against as many at random."""
    rng = random.Random(0)
    paths = {}
    for name in ("crafted", "random"):
        records = np.frombuffer(flood(400_000), np.uint8).reshape(400_000, -1).copy()
        if name == "crafted":
            low = np.arange(400_000) % 50_000
            records[:, 42:46] = (0x0A000000 + (np.arange(400_000) << 8)).astype(">u4")[:, None].view(np.uint8)
            records[:, 50:52] = (1024 + low).astype(">u2")[:, None].view(np.uint8)
            records[:, 52:54] = (60_000 - low).astype(">u2")[:, None].view(np.uint8)
        else:
            records[:, 42:46] = np.frombuffer(rng.randbytes(1_600_000), np.uint8).reshape(-1, 4)
            records[:, 50:54] = np.frombuffer(rng.randbytes(1_600_000), np.uint8).reshape(-1, 4)
        paths[name] = os.path.join(folder, f"{name}.pcap")
        Path(paths[name]).write_bytes(FILE_HEADER + records.tobytes())
    seconds = {name: [] for name in paths}
    for _ in range(7):
        for name, path in paths.items():
            touch_memory()
            began = cpu_seconds()
            sample(path)
            seconds[name].append(cpu_seconds() - began)
    ratio = statistics.median(seconds["crafted"][1:]) / statistics.median(seconds["random"][1:])
    print(f"crafted five-tuples: {ratio:.2f} x the time of random ones")


def bombs(folder):
    import warnings

    from sklearn_docids import CaptureWarning

    warnings.simplefilter("ignore", CaptureWarning)
    small_capture(os.path.join(folder, "small.pcap"))
    packed = os.path.join(folder, "small.pcap.gz")
    Path(packed).write_bytes(gzip.compress(Path(folder, "small.pcap").read_bytes()))
    sample(packed)
    contents = {"zeros": bytes(200_000_000), "one packet again and again": flood(1) * (200_000_000 // len(flood(1)))}
    paths = {}
    for name, content in contents.items():
        paths[name] = os.path.join(folder, f"{len(paths)}.pcap.gz")
        with gzip.open(paths[name], "wb") as file:
            file.write(FILE_HEADER + content)
    contents.clear()
    for name, path in paths.items():
        before = resident_bytes()
        began = cpu_seconds()
        with peak() as highest:
            sample(path)
        extra, seconds = (highest() - before) / 1e6, cpu_seconds() - began
        size = os.path.getsize(path)
        print(f"bomb of 200 MB, {name}: {size:,} bytes, {extra:.1f} MB more memory, {seconds:.2f} CPU s")


def large(folder, path):
    """Resident memory while a large capture goes to disk: at every tenth of it, and the highest."""
    small_capture(os.path.join(folder, "small.pcap"))
    SAMPLER.write(os.path.join(folder, "small.pcap"), os.path.join(folder, "small"))
    marks, size = [], os.path.getsize(path)

    class Watched:
        def __init__(self, file):
            self.file, self.n_read = file, 0

        def readinto(self, buffer):
            n = self.file.readinto(buffer)
            self.n_read += n
            if self.n_read >= size * (len(marks) + 1) / 10:
                marks.append(resident_bytes())
            return n

    began = cpu_seconds()
    with peak() as highest, open(path, "rb", buffering=0) as file:
        counters = SAMPLER.write(Watched(file), os.path.join(os.path.dirname(path), "out"))[0]
    print(
        f"{size / 1e9:.1f} GB to disk: {counters['flows']:,} flows, {cpu_seconds() - began:.1f} CPU s, "
        f"resident MB at each tenth {' '.join(f'{m / 1e6:.0f}' for m in marks)}, highest {highest() / 1e6:.0f}"
    )
    shutil.rmtree(os.path.join(os.path.dirname(path), "out"))


LIMITS = {"start_up": start_up, "syn_flood": syn_flood, "collisions": collisions, "bombs": bombs}


def limits(args):
    for name in [*LIMITS, *(["large"] if args.large else [])]:
        command = [sys.executable, __file__, "one", name, *([args.large] if name == "large" else [])]
        subprocess.run(command, check=True)


def one(args):
    with tempfile.TemporaryDirectory() as folder:
        if args.name == "large":
            large(folder, args.capture)
        else:
            LIMITS[args.name](folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("speed")
    command.add_argument("capture")
    command.add_argument("--runs", type=int, default=5)
    command.add_argument("--without", nargs="*", default=[], help="cases to leave out, by how their names begin")
    command.add_argument("--folder", help="where to write the capture of large packets")
    command.set_defaults(run=speed)
    command = commands.add_parser("limits")
    command.add_argument("--large", help="a capture of some 10 GB, from make_big_capture.py for instance")
    command.set_defaults(run=limits)
    command = commands.add_parser("one")
    command.add_argument("name")
    command.add_argument("capture", nargs="?")
    command.set_defaults(run=one)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
