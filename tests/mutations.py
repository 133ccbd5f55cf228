"""Damaged captures: sound ones of every kind, changed at random, and what must hold for each.

Containers and packet headers are changed separately: a broken container rarely lets a packet through.
"""

import bz2
import gzip
import io
import lzma
import random
import tempfile
import warnings
from collections import deque
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from captures import enhanced, interface, old_packet, option, pcap, section, simple, tcp
from packets import EXTENSIONS, LINK_LAYERS, NOT_SAMPLED, TUNNELS, udp6

from sklearn_docids import CaptureError, CaptureWarning, FlowSampler
from sklearn_docids.capture import folders
from sklearn_docids.capture.fields import FIELDS, apply_fields, policy_actions
from sklearn_docids.capture.flows import FlowAssembler, FlowRows, FlowRules, assemble
from sklearn_docids.capture.headers import PACKET_FATES
from sklearn_docids.capture.layouts import LAYOUTS
from sklearn_docids.capture.table import FlowTable

RULES = FlowRules(
    n_packets=4, n_bytes=80, bidirectional=True, idle_timeout=120.0, tcp_restart=True, protocols=("tcp", "udp"),
    max_live_flows=300,
)  # fmt: skip
ALL_ZERO = tuple(policy_actions(dict.fromkeys(FIELDS, "zero"), training=False).tolist())
INNERMOST = replace(
    RULES, max_live_flows=3, innermost=True, vxlan_ports=(4789,), duplicate_window=3, duplicate_ignore_ttl=True,
    active_timeout=30.0, field_actions=ALL_ZERO,
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 1)

PACKETS = [(link_type, bytes(packet)) for link_type, packet, _ in LINK_LAYERS.values()]
PACKETS += [(1, bytes(packet)[:400]) for packet, *_ in [*TUNNELS.values(), *NOT_SAMPLED.values()]]
PACKETS += [(1, bytes(udp6(payload=b"abc", between=between))) for between in EXTENSIONS.values()]
PACKETS += [(1, bytes(tcp(flags=flags, payload=b"x" * 90))) for flags in ("S", "SA", "FA", "R")]


def sound_captures():
    """Return whole captures in every container."""
    ethernet = [packet for link_type, packet in PACKETS if link_type == 1]
    captures = [
        pcap(ethernet, order=order, magic=magic, pad=pad)
        for order in "<>"
        for magic, pad in ((0xA1B2C3D4, b""), (0xA1B23C4D, b""), (0xA1B2CD34, bytes(8)))
    ]
    types = sorted({link_type for link_type, _ in PACKETS})
    for order in "<>":
        blocks = section(order) + b"".join(interface(t, order, option(9, b"\x09", order)) for t in types)
        for i, (link_type, packet) in enumerate(PACKETS):
            kind = (enhanced, old_packet)[i % 2]
            blocks += kind(packet, 10**9 * i, types.index(link_type), order)
        captures.append(blocks + section(order) + interface(1, order) + simple(ethernet[0], order))
    return captures + [pack(captures[i]) for i, pack in ((0, gzip.compress), (6, bz2.compress), (7, lzma.compress))]


def mutate(data, rng):
    """Return bytes with one to eight random changes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 40))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind <= 2:
            width = rng.choice((1, 2, 4))
            number = (rng.choice(NUMBERS) & (2 ** (8 * width) - 1)).to_bytes(width, rng.choice(("little", "big")))
            data[at : at + width] = number
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = rng.randbytes(size)
        elif kind == 5:
            other = rng.randrange(len(data) + 1)
            data[at:at] = data[other : other + size]
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)


CAPTURES = sound_captures()


def damaged_container(rng):
    """Return a capture whose container is damaged, at times two of them one behind the other."""
    data = mutate(rng.choice(CAPTURES), rng)
    return data + rng.choice(CAPTURES) if rng.random() < 0.1 else data


def damaged_packets(rng):
    """Return a sound container with damaged packets of one link type."""
    link_type = rng.choice(PACKETS)[0]
    packets = [mutate(p, rng) for t, p in PACKETS if t == link_type for _ in range(3)]
    captured = [rng.randrange(len(p) + 1) if rng.random() < 0.3 else len(p) for p in packets]
    return pcap(packets, link_type=link_type, captured=captured, times=[rng.random() * 300 for _ in packets])


def cut_in_two(data, rng):
    """Return a capture of fixed records as two files, of which the second begins where the first ends, or before."""
    at = 24
    ends = [at]
    while at + 16 <= len(data):
        at += 16 + int.from_bytes(data[at + 8 : at + 12], "little")
        ends.append(at)
    at = rng.choice(ends)
    return [data[:at], data[:24] + data[at - rng.choice((0, 0, 0, 3)) :]]


def assembled(captures, rules, emit=None):
    """Return (rows, counters) of captures that are read one after the other, None if none of them is a capture."""
    assembler = FlowAssembler(rules, emit)
    counters = []
    for data in captures:
        try:
            for _ in assemble(io.BytesIO(data), assembler, "warn"):
                pass
            counters.append(assembler.counters | {"ignored": sum(assembler.ignored.values())})
        except CaptureError:
            continue
    deque(assembler.finish(), maxlen=0)
    return (assembler.rows, counters) if counters else None


def check(captures, rules):
    """Sample captures both ways; return whether one of them is one.

    Only the documented error may come out, packets must add up, rows must be zero behind what was kept, and flows
    that pass through recycled slots must be those kept in memory.
    """
    streamed = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", CaptureWarning)
        found = assembled(captures, rules)
        if not found:
            return False
        assembled(captures, rules, lambda rows: streamed.append(rows.copy()))
    rows, counters = found
    for each in counters:
        assert sum(each[fate] for fate in PACKET_FATES) == each["packets"]
        assert each["ignored"] == each["non_ip"] + each["other_protocol"] + each["unknown_link_type"]
    if len(counters) == len(captures):
        assert sum(each["flows"] for each in counters) == len(rows)
        counted = rows.records["packets_forward"].astype(np.int64) + rows.records["packets_backward"]
        assert counted.sum() == sum(each["sampled"] for each in counters)
    check_lengths(rows)
    behind = np.arange(rules.n_bytes) >= rows.kept_bytes[:, :, None]
    assert not rows.X.reshape(behind.shape)[behind].any()
    assert_same_rows(streamed, rows)
    return True


def check_lengths(rows):
    """Check that no row has more payload than its flow, and that packets without payload stand where they belong."""
    lengths = rows.payload_lengths.astype(np.int64)
    assert (lengths.clip(min=0).sum(axis=1) <= rows.records["payload_forward"]).all()
    assert (-lengths.clip(max=0).sum(axis=1) <= rows.records["payload_backward"]).all()
    if rows.layout == "payload":
        places = rows.X.reshape(*lengths.shape, rows.X.shape[1] // lengths.shape[1]).astype(np.int64)
        assert not (np.diff((lengths != 0).astype(int), axis=1) > 0).any()
        assert (places[..., 1] == np.where(lengths > 0, 1, np.where(lengths < 0, 2, places[..., 1]))).all()
        assert (places[..., 2] * 256 + places[..., 3] == np.minimum(abs(lengths), 65535)).all()


@cache
def sound_folder(layout):
    """Return the files of a folder of flows by their names."""
    with tempfile.TemporaryDirectory() as folder:
        FlowSampler(layout=layout).write(io.BytesIO(CAPTURES[0]), folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def check_folder(rng):
    """Load a folder of flows one of whose files is damaged, sealed anew at times; return whether it was loaded.

    Only the documented errors may come out, and compiled code must stay within what was loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = sound_folder(rng.choice(LAYOUTS))
        for name, data in files.items():
            Path(folder, name).write_bytes(data)
        damaged = rng.choice(sorted(files))
        Path(folder, damaged).write_bytes(mutate(files[damaged], rng))
        if rng.random() < 0.5 and damaged != folders.CHECKSUMS:
            with suppress(Exception):  # sums of what is no array cannot be taken, and need not
                folders.seal(folder)
        try:
            table = FlowTable.load(folder)
        except (ValueError, OSError):
            return False
        rows = table.rows.copy()
        apply_fields(rows, np.array(ALL_ZERO), 0)
        assert len(table.payload_lengths) == len(table.community_id) == len(table.begin) == len(table.end) == len(rows)
        return True


def assert_same_rows(parts, rows):
    """Check that flows in any order are ``rows``."""
    if not parts:
        assert len(rows) == 0
        return
    records = np.concatenate([part.records for part in parts])
    order = np.argsort(records["row"])
    streamed = FlowRows(
        records[order],
        np.concatenate([part.X for part in parts])[order],
        np.concatenate([part.kept_bytes for part in parts])[order],
        np.concatenate([part.payload_lengths for part in parts])[order],
        rows.layout,
    )
    assert (streamed.records == rows.records).all()
    assert (streamed.X == rows.X).all()
    assert (streamed.kept_bytes == rows.kept_bytes).all()
    assert (streamed.payload_lengths == rows.payload_lengths).all()


def run(seed):
    """Check one damaged capture; the seed decides which. Return whether it still was a capture."""
    rng = random.Random(seed)
    if seed % 20 == 5:
        return check_folder(rng)
    rules = replace(INNERMOST if seed % 3 == 0 else RULES, layout=LAYOUTS[seed // 2 % 2])
    if seed % 2:
        return check([damaged_container(rng)], rules)
    data = damaged_packets(rng)
    return check(cut_in_two(data, rng) if seed % 10 == 0 else [data], rules)
