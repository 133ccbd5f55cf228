"""Damaged captures: sound ones of every kind, changed at random, and what must hold for each.

Containers and packet headers are changed separately: a broken container rarely lets a packet through.
"""

import bz2
import gzip
import io
import lzma
import random
import warnings
from dataclasses import replace

import numpy as np
from captures import enhanced, interface, old_packet, option, pcap, section, simple, tcp
from packets import EXTENSIONS, LINK_LAYERS, NOT_SAMPLED, TUNNELS, udp6

from sklearn_docids import CaptureError, CaptureWarning
from sklearn_docids.capture.fields import FIELDS, policy_actions
from sklearn_docids.capture.flows import FlowRows, FlowRules, assemble

RULES = FlowRules(
    n_packets=4, n_bytes=80, bidirectional=True, idle_timeout=120.0, tcp_restart=True, protocols=("tcp", "udp"),
    max_live_flows=262_144,
)  # fmt: skip
ALL_ZERO = tuple(policy_actions(dict.fromkeys(FIELDS, "zero"), training=False).tolist())
INNERMOST = replace(RULES, max_live_flows=3, innermost=True, duplicate_window=3, field_actions=ALL_ZERO)
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


def check(data, rules):
    """Sample a capture both ways; return whether it was one.

    Only the documented error may come out, packets must add up, rows must be zero behind what was kept, and flows
    that pass through recycled slots must be those kept in memory.
    """
    streamed = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", CaptureWarning)
        try:
            *_, assembler = assemble(io.BytesIO(data), rules, "warn")
        except CaptureError:
            return False
        for _ in assemble(io.BytesIO(data), rules, "warn", lambda rows: streamed.append(rows.copy())):
            pass
    rows, counters = assembler.rows, assembler.counters
    fates = {name: n for name, n in counters.items() if name not in ("packets", "flows", "flows_evicted")}
    assert sum(fates.values()) == counters["packets"]
    assert counters["flows"] == len(rows)
    counted = rows.records["packets_forward"].astype(np.int64) + rows.records["packets_backward"]
    assert counted.sum() == counters["sampled"]
    behind = np.arange(rules.n_bytes) >= rows.kept_bytes[:, :, None]
    assert not rows.X.reshape(behind.shape)[behind].any()
    assert_same_rows(streamed, rows)
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
    )
    assert (streamed.records == rows.records).all()
    assert (streamed.X == rows.X).all()
    assert (streamed.kept_bytes == rows.kept_bytes).all()


def run(seed):
    """Check one damaged capture; the seed decides which. Return whether it still was a capture."""
    rng = random.Random(seed)
    data = damaged_container(rng) if seed % 2 else damaged_packets(rng)
    return check(data, INNERMOST if seed % 3 == 0 else RULES)
