# SPDX-License-Identifier: BSD-3-Clause
"""CIC-IDS-2017 from its captures: Monday is normal, Tuesday to Friday carry attacks by a published schedule."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import Bunch, check_random_state

from sklearn_docids import paper
from sklearn_docids._sampler import FlowSampler
from sklearn_docids.datasets._cache import as_sampled, captured_flows
from sklearn_docids.datasets._files import files_of
from sklearn_docids.datasets._labels import NORMAL, NOT_ATTEMPTED, Rule, label_flows, read_schedule

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

HOME = "https://www.unb.ca/cic/datasets/ids-2017.html"
DAYS = {
    "Monday": "2017-07-03",
    "Tuesday": "2017-07-04",
    "Wednesday": "2017-07-05",
    "Thursday": "2017-07-06",
    "Friday": "2017-07-07",
}
# The captures were begun before nine in the morning and ended after five, three hours behind UTC.
BEGUN_BY, ENDED_AFTER = "13:00", "19:00"
# The published remedies, `editcap -D 10000` and reordercap.
DUPLICATE_WINDOW, REORDER_WINDOW = 9_999, 10_000
# Where no timeout ends flows, all of a day are live in the evening: half a million or more.
MOST_LIVE_FLOWS = 2**23
# Share of a day's flows that may bear the date of another one.
MOST_STRAY_FLOWS = 0.001
# The tables of the set are called Monday-WorkingHours.pcap_ISCX.csv and the like: no captures.
CAPTURE_NAME = re.compile(r"\.pcap(ng)?(\.(gz|zst|lz4|xz|bz2))?$", re.IGNORECASE)
# A published checksum file is one line; those of all five captures in one are five.
MOST_CHECKSUM_CHARACTERS = 10_000
SCAN_INSIDE = "Infiltration - Portscan"
# The paper's Table 4. It has no DDoS, although the paper names it, and the scan inside the network counts as benign.
PAPER_TRAIN, PAPER_BENIGN = 249_044, 961_128
PAPER_COUNTS = {
    "FTP-Patator": 3_499, "SSH-Patator": 2_949, "DoS slowloris": 3, "DoS Slowhttptest": 4_191, "DoS Hulk": 13_802,
    "DoS GoldenEye": 7_427, "Heartbleed": 1, "Web Attack - Brute Force": 791, "Web Attack - XSS": 346,
    "Web Attack - Sql Injection": 11, "Infiltration": 6, "Bot": 1_228, "PortScan": 158_603,
}  # fmt: skip
# Flows of the corrected tables (Liu et al., CNS 2022), carried out and attempted. They end flows after 120 s, so that
# the one connection of Heartbleed is eleven.
CORRECTED_TRAIN = 371_624
CORRECTED_COUNTS = {
    "FTP-Patator": (3_972, 12), "SSH-Patator": (2_961, 27), "DoS slowloris": (3_859, 1_847),
    "DoS Slowhttptest": (1_740, 3_368), "DoS Hulk": (158_468, 581), "DoS GoldenEye": (7_567, 80),
    "Heartbleed": (11, 0), "Web Attack - Brute Force": (73, 1_292), "Web Attack - XSS": (18, 655),
    "Web Attack - Sql Injection": (13, 5), "Infiltration": (36, 45), SCAN_INSIDE: (71_767, 0), "Bot": (736, 4_067),
    "PortScan": (159_066, 0), "DDoS": (95_144, 0),
}  # fmt: skip


def load_cic_ids_2017(
    folder: str | os.PathLike[str],
    *,
    labels: str = "corrected",
    attempted: str = "ignore",
    sampler: FlowSampler | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    random_state: int | np.random.RandomState | None = None,
    verbose: int = 0,
) -> Bunch:
    """Load CIC-IDS-2017 from its five captures: Monday to train on, Tuesday to Friday to test with.

    Nothing is downloaded: get the captures [1]_, about 50 GB, and give their folder. The labels come from the schedule
    of the attacks, not from the published tables; docs/datasets.md has the rules.

    Guide: :doc:`/datasets`.

    Parameters
    ----------
    folder : path
        Folder with one capture per day, named as published (``Monday-WorkingHours.pcap``): the name begins with the
        day and ends in ``.pcap`` or ``.pcapng``. They are pcapng whatever they are called, and may be packed. Where a
        checksum lies beside (``Monday-WorkingHours.md5``), it is checked before a capture is sampled. Links that lead
        out of the folder are skipped, as in `load_class_folder`.
    labels : {"corrected", "paper"}, default="corrected"
        ``"corrected"``: the schedule of [2]_, with the scan inside the network as an attack and ``attempted`` as
        said. ``"paper"``: as the paper's Table 4 counts, as far as that is known: the scan inside the network is
        normal, an attack that was only attempted is one.
    attempted : {"ignore", "benign", "attack"}, default="ignore"
        What becomes of flows of attacks that were only attempted: left out, normal, or attacks. With
        ``labels="paper"`` they are attacks whatever is said here.
    sampler : FlowSampler, default=None
        Sampler to use; None: with ``labels="paper"`` `sklearn_docids.paper.sampler` with ``fields="no_addresses"``,
        otherwise `FlowSampler`, both with ``duplicate_window=9999`` and ``reorder_window=10000``, because the captures
        hold packets twice and out of order, and room for all flows of a day. Monday is sampled as training data: with
        ``fields="paper"``, its addresses are random.
    cache_folder : path or None, default=None
        Folder for sampled flows, made where needed: about 350 bytes a flow. They are used again only for the same
        captures and the same settings. None keeps nothing.
    random_state : int, RandomState instance or None, default=None
        Source of Monday's random addresses; that of the sampler is not used.
    verbose : int, default=0
        1 prints a line per capture and the counts; 2 a line for every tenth of a capture.

    Returns
    -------
    Bunch
        ``X_train``: ndarray of uint8, shape (n_flows, n_packets * n_bytes), Monday; ``X_test``: the other days;
        ``y_test``: ndarray of int64, +1 normal and -1 attack; ``attack``: ndarray of str, the attack of each test flow,
        "" where it counts as normal; ``attempted``: ndarray of int64, category of an attempt, -1 otherwise;
        ``capture_test``: ndarray of int64, 1 for Tuesday to 4 for Friday; ``captures``: paths by day; ``counts``: list
        of dict, per attack the flows carried out and attempted, next to those of the paper and of [2]_; ``DESCR``: the
        same as text.

    Raises
    ------
    FileNotFoundError
        The captures of some days are missing; the message names them and where to get them.
    ValueError
        A parameter is invalid, the sampler splits flows by direction, there are two captures of a day, or a capture is
        of another day, not whole, or has another checksum than the one beside it.
    CaptureError
        A file is not a capture.

    Warns
    -----
    CaptureWarning
        A capture is damaged; what stands before the damage is used, if it covers the day.
    UserWarning
        The sampler had room for too few live flows, cached flows are damaged and made again, or what is no file of the
        folder is skipped.

    References
    ----------
    .. [1] https://www.unb.ca/cic/datasets/ids-2017.html
    .. [2] Liu, L., G. Engelen, T. Lynar, D. Essam and W. Joosen, "Error Prevalence in NIDS datasets: A Case Study on
       CIC-IDS-2017 and CSE-CIC-IDS-2018", IEEE CNS 2022.

    Examples
    --------
    >>> from sklearn_docids.datasets import load_cic_ids_2017
    >>> data = load_cic_ids_2017("CIC-IDS-2017", cache_folder="cache", random_state=0)  # doctest: +SKIP
    >>> print(data.DESCR)  # doctest: +SKIP
    """
    _check_choice("labels", labels, ("corrected", "paper"))
    _check_choice("attempted", attempted, ("ignore", "benign", "attack"))
    captures = day_captures(Path(folder))
    sampler = _own_sampler(labels) if sampler is None else clone(sampler)
    sampler.set_params(verbose=verbose)
    if not sampler.bidirectional:
        raise ValueError("the rules of the labels need whole flows: give a sampler with bidirectional=True")
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    rules = read_schedule("cic_ids_2017.csv")
    days = []
    for number, (day, capture) in enumerate(captures.items()):
        flows = captured_flows(capture, sampler, cache_folder, checked_capture)
        check_whole_day(flows, day, capture, rules)
        days.append(_labelled_day(flows, number, rules, sampler, seed))
    data = Bunch(X_train=days[0].X)
    for name in ("X", "attack", "attempted", "capture_test"):
        data["X_test" if name == "X" else name] = np.concatenate([day.pop(name) for day in days[1:]])
    _apply_policy(data, labels, attempted)
    data.captures = captures
    data.DESCR = _described(data, labels, attempted)
    if verbose:
        print(data.DESCR, flush=True)
    return data


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def _own_sampler(labels: str) -> FlowSampler:
    repairs: dict[str, Any] = {"duplicate_window": DUPLICATE_WINDOW, "reorder_window": REORDER_WINDOW}
    repairs["max_live_flows"] = MOST_LIVE_FLOWS
    return paper.sampler(fields="no_addresses", **repairs) if labels == "paper" else FlowSampler(**repairs)


def day_captures(home: Path) -> dict[str, Path]:
    """Return the capture of each day.

    Raises
    ------
    FileNotFoundError
        Days are missing.
    ValueError
        A day has two.
    """
    if not home.is_dir():
        raise FileNotFoundError(f"{home} is not a folder; it must hold the five captures, see {HOME}")
    found: dict[str, list[Path]] = {day: [] for day in DAYS}
    for path in files_of(home, (path for path in home.iterdir() if CAPTURE_NAME.search(path.name))):
        for day in DAYS:
            if path.name.lower().startswith(day.lower()):
                found[day].append(path)
    missing = [day for day, paths in found.items() if not paths]
    if missing:
        raise FileNotFoundError(
            f"{home} lacks the captures of {', '.join(missing)} (Monday-WorkingHours.pcap and the like), see {HOME}"
        )
    for day, paths in found.items():
        if len(paths) > 1:
            raise ValueError(f"{home} has {len(paths)} captures of {day}: {', '.join(p.name for p in paths)}; keep one")
    return {day: paths[0] for day, paths in found.items()}


@contextmanager
def checked_capture(path: Path) -> Iterator[list[Path]]:
    """Yield the captures in a file that is one, if it has the checksum that is published beside it.

    Raises
    ------
    ValueError
        It has another one, or there is none in the file that should hold it.
    """
    for beside in {path.with_suffix(".md5"), path.with_name(f"{path.name}.md5")}:
        if not beside.is_file():
            continue
        with beside.open(errors="replace") as text:
            found = re.findall(r"\b[0-9a-f]{32}\b", text.read(MOST_CHECKSUM_CHARACTERS).lower())
        if not found:
            raise ValueError(f"{beside} holds no MD5 checksum of {path.name}: get it again, or remove it to go without")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest not in found:
            raise ValueError(f"{path} has the MD5 checksum {digest}, but {beside.name} says {found[0]}; get it again")
    yield [path]


def check_whole_day(flows: FlowTable, day: str, capture: Path, rules: list[Rule]) -> None:
    """Refuse a capture that is of another day, or does not last from morning to evening and beyond the last attack.

    Raises
    ------
    ValueError
        It is, or does not.
    """
    if not len(flows):
        raise ValueError(f"{capture} has no flows")
    begin = _ns(DAYS[day])
    end = begin + 86_400 * 10**9
    inside = (flows.time_first >= begin) & (flows.time_last < end)
    first, last = int(flows.time_first.min()), int(flows.time_last.max())
    if np.mean(inside) < 1 - MOST_STRAY_FLOWS:
        raise ValueError(f"{capture} holds packets from {_text(first)} to {_text(last)}, but {day} is {DAYS[day]}")
    first, last = int(flows.time_first[inside].min()), int(flows.time_last[inside].max())
    last_expected = max([_ns(f"{DAYS[day]}T{ENDED_AFTER}")] + [rule.end for rule in rules if begin <= rule.start < end])
    if first > _ns(f"{DAYS[day]}T{BEGUN_BY}") or last < last_expected:
        raise ValueError(
            f"{capture} is not the whole of {day}: it lasts from {_text(first)} to {_text(last)}, and should begin by "
            f"{BEGUN_BY} and last until {_text(last_expected)}; if it is damaged (a warning says so), repair it with "
            "pcapfix, else get or extract it again"
        )


def _ns(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


def _text(time: int) -> str:
    return f"{np.datetime64(time, 'ns').astype('datetime64[s]')}Z"


def _labelled_day(flows: FlowTable, number: int, rules: list[Rule], sampler: FlowSampler, seed: int) -> Bunch:
    """Return rows, attacks and categories of attempts of a day, before any policy; day 0 is the training one."""
    labels, attempted = label_flows(flows, rules)
    return Bunch(
        X=as_sampled(flows, sampler, training=number == 0, seed=seed),
        attack=np.where(labels == NORMAL, "", labels),
        attempted=attempted,
        capture_test=np.full(len(flows), number),
    )


def _apply_policy(data: Bunch, labels: str, attempted: str) -> None:
    """Count flows per attack, then decide which of them count as attacks and which are left out."""
    tried = data.attempted != NOT_ATTEMPTED
    data.counts = _counts(data.attack, tried)
    if labels == "paper":
        data.attack[data.attack == SCAN_INSIDE] = ""
    elif attempted == "benign":
        data.attack[tried] = ""
    elif attempted == "ignore":
        for name in ("X_test", "attack", "attempted", "capture_test"):
            data[name] = data[name][~tried]
    data.y_test = np.where(data.attack == "", 1, -1)


def _counts(attack: np.ndarray, tried: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "attack": name,
            "carried_out": int(np.sum((attack == name) & ~tried)),
            "attempted": int(np.sum((attack == name) & tried)),
            "paper": PAPER_COUNTS.get(name),
            "corrected_carried_out": carried_out,
            "corrected_attempted": only_tried,
        }
        for name, (carried_out, only_tried) in CORRECTED_COUNTS.items()
    ]


def _described(data: Bunch, labels: str, attempted: str) -> str:
    """Return the counts as a table, next to those of the paper and of the corrected tables."""
    policy = f"labels={labels!r}" + ("" if labels == "paper" else f", attempted={attempted!r}")
    text = f"CIC-IDS-2017, {policy}: flows here, in the paper's Table 4, in the corrected tables of CNS 2022.\n\n"
    line = "{:26} {:>11} {:>10} {:>10} {:>11} {:>10}\n"
    text += line.format("", "carried out", "attempted", "paper", "carried out", "attempted")
    text += line.format("Monday, train", len(data.X_train), "", PAPER_TRAIN, CORRECTED_TRAIN, "")
    text += line.format("other days, normal", int(np.sum(data.y_test == 1)), "", PAPER_BENIGN, "", "")
    for count in data.counts:
        text += line.format(*("-" if value is None else value for value in count.values()))
    return text
