# SPDX-License-Identifier: BSD-3-Clause
"""What became of the packets of captures, in words; counters name the fates, so that none can be forgotten here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

# Fates that were asked for or are reported elsewhere.
EXPECTED = ("sampled", "duplicate", "unknown_link_type")
# Ordinary traffic has some ARP and ICMP; of few packets that may be most.
MAX_IGNORED, LEAST_PACKETS = 0.5, 100
MOST_KINDS = 5


def summed(counters: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the counters of several captures as those of one."""
    total = Counter({"packets": 0, "sampled": 0, "flows": 0})
    for each in counters:
        total.update(each)
    return dict(total)


def described(counters: Mapping[str, int]) -> str:
    """Return counters as a line: packets, how many of them are in no flow and why, flows and how they ended early."""
    fates = _fates(counters)
    n_ignored = sum(fates.values()) - fates.get("sampled", 0)
    why = _listed({name: n for name, n in fates.items() if name != "sampled"})
    ended = _listed({name[6:]: n for name, n in counters.items() if name.startswith("flows_")})
    ignored = f"{n_ignored} ignored" + (f" ({why})" if why else "")
    flows = _counted(counters["flows"], "flow") + (f" ({ended})" if ended else "")
    return f"{_counted(counters['packets'], 'packet')}, {ignored}, {flows}"


def most_frequent(ignored: Iterable[Mapping[str, int]]) -> str:
    """Return the most frequent kinds of what is in no flow, of several captures."""
    total: Counter[str] = Counter()
    for each in ignored:
        total.update(each)
    return ", ".join(f"{n} {kind}" for kind, n in total.most_common(MOST_KINDS))


def mostly_ignored(counters: Mapping[str, int], unwanted: Collection[str]) -> bool:
    """Return whether most packets of a capture are in no flow, those of ``unwanted`` fates not counted."""
    n_ignored = sum(n for name, n in _fates(counters).items() if name not in (*EXPECTED, *unwanted))
    return counters["packets"] >= LEAST_PACKETS and n_ignored > MAX_IGNORED * counters["packets"]


def _fates(counters: Mapping[str, int]) -> dict[str, int]:
    return {name: n for name, n in counters.items() if name != "packets" and not name.startswith("flows")}


def _counted(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def _listed(numbers: Mapping[str, int]) -> str:
    """Return what there is any of, most first."""
    found = sorted(((n, name) for name, n in numbers.items() if n), key=lambda each: (-each[0], each[1]))
    return ", ".join(f"{n} {name.replace('_', ' ')}" for n, name in found)
