"""The slow, obvious twins of the views of a flow: one flow at a time, dictionaries and loops."""

import itertools
import math
from collections import defaultdict

import numpy as np

HALF_LIVES = (1.0, 10.0, 60.0, 240.0)


def message(flow, forward):
    """Return the first payload of a flow in a direction, as far as its row holds it."""
    places = flow.X.reshape(flow.n_packets, -1)
    for place, length in zip(places, flow.payload_lengths[0].tolist(), strict=True):
        if (length > 0) if forward else (length < 0):
            return place[8:].tobytes()[: abs(length)]
    return b""


def service(flow):
    return int(flow.protocol[0]), min(int(flow.dst_port[0]), 32_768)


def each(flows):
    return [flows[row] for row in range(len(flows))]


def novelty(normal, flows):
    """Return how many of who asks whom for what are new."""

    def keys(flow):
        asked = str(flow.dst_ip[0]), service(flow)
        return (str(flow.src_ip[0]), *asked), asked, service(flow)

    seen = [set(kind) for kind in zip(*map(keys, each(normal)), strict=True)]
    return [sum(key not in of_kind for key, of_kind in zip(keys(flow), seen, strict=True)) for flow in each(flows)]


def requests(normal, flows):
    """Return the share of pairs of bytes that no request to the service had."""
    seen = defaultdict(set)
    for flow in each(normal):
        text = message(flow, True)[:24]
        seen[service(flow)] |= set(itertools.pairwise(text))
    found = []
    for flow in each(flows):
        text = message(flow, True)[:24]
        pairs = list(itertools.pairwise(text))
        found.append(sum(pair not in seen[service(flow)] for pair in pairs) / max(1, len(pairs)))
    return found


def statistics(flow):
    counts = [
        getattr(flow, f"{what}_{way}")[0] for what in ("packets", "bytes", "payload") for way in ("forward", "backward")
    ]
    milliseconds = (flow.time_last[0] - flow.time_first[0]) / 1e6
    is_reset = bool((flow.tcp_flags_forward[0] | flow.tcp_flags_backward[0]) & 4)
    return [math.log1p(v) for v in (milliseconds, *counts)] + [float(flow.payload_backward[0] == 0), float(is_reset)]


def statistics_distance(normal, flows):
    """Return the logarithm of 1 and the mean distance to the five nearest normal flows."""
    known = np.array([statistics(flow) for flow in each(normal)])
    mean, spread = known.mean(axis=0), known.std(axis=0)
    spread[spread < 1e-6] = 1
    found = []
    for flow in each(flows):
        distances = sorted(
            math.dist((place - mean) / spread, (np.array(statistics(flow)) - mean) / spread) for place in known
        )
        found.append(math.log1p(np.mean(distances[:5])))
    return found


def trigrams(text):
    """Return the description of a message: roots of the numbers of hashed trigrams, of length 1."""
    numbers = np.zeros(512)
    for a, b, c in zip(text, text[1:], text[2:], strict=False):
        numbers[(a * 7919 + b * 104_729 + c * 1_299_709) % 512] += 1
    roots = np.sqrt(numbers)
    return roots / max(1e-9, np.linalg.norm(roots))


def content_excess(flows, clusterings):
    """Return how far beyond what was normal the counts of like flows are, of flows in order of time."""
    past = defaultdict(list)
    found = []
    for flow in each(flows):
        place = np.concatenate([trigrams(message(flow, True)), trigrams(message(flow, False))])
        now, excesses = int(flow.time_first[0]), []
        for number, (centers, most) in enumerate(clusterings):
            cluster = int(np.argmin(((centers - place) ** 2).sum(axis=1)))
            of_sides = []
            for side, address in enumerate((str(flow.src_ip[0]), str(flow.dst_ip[0]))):
                key = number, side, address, cluster
                past[key].append(now)
                for j, half_life in enumerate(HALF_LIVES):
                    count = sum(2.0 ** (-(now - time) / 1e9 / half_life) for time in past[key])
                    of_sides.append(math.log(count) - most[side, cluster, j])
            excesses.append(max(of_sides))
        found.append(np.mean(excesses))
    return found


def surprise(normal, score):
    """Return the opposite of the logarithm of the share of normal scores as high, beyond the largest an exponential."""
    counted = -math.log((sum(other >= score for other in normal) + 1) / (len(normal) + 1))
    if score <= max(normal):
        return counted
    n_tail = max(5, int(0.02 * len(normal)))
    tail = sorted(normal)[-n_tail:]
    return counted + (score - max(normal)) / (np.mean(tail) - tail[0])
