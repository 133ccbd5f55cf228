# SPDX-License-Identifier: BSD-3-Clause
"""Cut the captures of `build.py` to the beginnings of flows and pack them, as the package carries them.

    python testbed/pack.py FOLDER sklearn_docids/datasets/testbed

Of each flow the first 8 packets are kept, and those that end it; of each packet the first 160 bytes. Lengths on the
wire stay as they were. A sampler of up to 8 packets of 160 bytes makes the same rows of the cut captures as of the
whole ones; this is checked here.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sklearn_docids import FlowSampler

N_PACKETS = 8
N_BYTES = 160
IDLE_S = 120
TCP = 6
FIN, SYN, RST, ACK = 1, 2, 4, 16
FILE_HEADER = struct.Struct("<IHHiIII")
RECORD_HEADER = struct.Struct("<IIII")


def records(capture: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield header and packet of each record of a pcap file of tcpdump."""
    place = FILE_HEADER.size
    while place < len(capture):
        header = capture[place : place + RECORD_HEADER.size]
        place += RECORD_HEADER.size
        length = RECORD_HEADER.unpack(header)[2]
        yield header, capture[place : place + length]
        place += length


def cut(capture: bytes) -> bytes:
    """Return a pcap file with the beginnings and ends of the flows of another one."""
    flows: dict[bytes, list[int]] = {}  # five-tuple -> packets so far, second of the last one, whether it was ended
    kept = [capture[: FILE_HEADER.size - 8] + struct.pack("<II", N_BYTES, 1)]
    for header, packet in records(capture):
        seconds, fraction, _, length = RECORD_HEADER.unpack(header)
        ports = 14 + 4 * (packet[14] & 15)
        flags = packet[ports + 13] if packet[23] == TCP else 0
        ends = sorted([packet[26:30] + packet[ports : ports + 2], packet[30:34] + packet[ports + 2 : ports + 4]])
        flow = flows.setdefault(packet[23:24] + b"".join(ends), [0, seconds, 0])
        if seconds - flow[1] > IDLE_S or (flow[2] and flags & (SYN | ACK) == SYN):
            flow[:] = [0, seconds, 0]
        flow[0] += 1
        flow[1] = seconds
        flow[2] |= flags & (FIN | RST)
        if flow[0] <= N_PACKETS or flags & (FIN | RST):
            packet = packet[:N_BYTES]
            kept += [RECORD_HEADER.pack(seconds, fraction, len(packet), length), packet]
    return b"".join(kept)


def check_same_flows(whole: Path, short: Path) -> int:
    """Return the number of flows of two captures; they must have the same ones, beginning alike.

    Raises
    ------
    ValueError
        They have not.
    """
    sampler = FlowSampler(N_PACKETS, N_BYTES, fields="raw")
    first, second = sampler.flows(whole), sampler.flows(short)
    same = len(first) == len(second) and np.array_equal(first.X, second.X)
    if not same or not np.array_equal(first.time_first, second.time_first):
        raise ValueError(f"{short} has other flows than {whole}")
    return len(first)


def pack_all(folder: Path, packed: Path) -> None:
    """Cut, pack and check all captures of a folder; copy the truth."""
    for whole in sorted(folder.glob("*/*.pcap")):
        inside = Path("reference") if whole.parent.name == "reference" else Path()
        target = packed / inside / f"{whole.name}.xz"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(lzma.compress(cut(whole.read_bytes()), preset=9 | lzma.PRESET_EXTREME))
        n_flows = check_same_flows(whole, target)
        print(f"{target.stat().st_size:>9,} bytes, {n_flows:>5} flows: {target.name}", flush=True)
    for truth in sorted(folder.glob("office/*.csv")):
        shutil.copy(truth, packed)


def main() -> None:
    """Pack the captures of a folder again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("packed", type=Path)
    options = parser.parse_args()
    pack_all(options.folder, options.packed)


if __name__ == "__main__":
    main()
