# SPDX-License-Identifier: BSD-3-Clause
"""BOS 2018, observed intrusions by mail and remote access, from the MWS Datasets."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.utils import Bunch, check_random_state

from sklearn_docids import paper
from sklearn_docids._sampler import FlowSampler
from sklearn_docids.datasets._cache import as_sampled, captured_flows
from sklearn_docids.datasets._files import files_of, paths_below

HOME = "https://www.iwsec.org/mws/datasets.html"
ADDRESS_FILE = "c2_addresses.txt"
# Room for 20,000 of the longest addresses; the captures hold a few intrusions.
MOST_ADDRESS_CHARACTERS = 10**6
# No timeout ends a flow, so all of a capture are live at its end.
MOST_LIVE_FLOWS = 2**23
TRAIN_LEVEL, TEST_LEVELS = 2, (7, 8)
# The paper's Table 3: flows.
PAPER_COUNTS = {"train": 152_348, "normal": 659_835, "progress 7": 12_051, "progress 8": 3_041}
LEVEL = re.compile(r"(?:progress|level|lv)[ _.-]?(\d+)", re.IGNORECASE)


def load_bos_2018(
    folder: str | os.PathLike[str],
    *,
    c2_addresses: Sequence[str] | None = None,
    levels: dict[str, int] | None = None,
    sampler: FlowSampler | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    random_state: int | np.random.RandomState | None = None,
    verbose: int = 0,
) -> Bunch:
    """Load BOS 2018 by progress level: level 2 to train on, levels 7 and 8 to test with.

    BOS is part of the MWS Datasets, which are given to research groups under an agreement [1]_; nothing is downloaded.
    An intrusion's progress level tells how far it came: captures up to level 2 hold no traffic of a command-and-control
    server, those of levels 7 and 8 do. A test flow is an attack if one of its ends is such a server. This much is in
    the paper; the names of files and the list of servers are not public, so both can be given.

    Guide: :doc:`/datasets`.

    Parameters
    ----------
    folder : path
        Folder with the captures, at any depth. The level of a capture is the number in the part of its path that reads
        like ``progress2``, ``level_7`` or ``lv8``; there must not be two that differ. Links that lead out of the folder
        are skipped, as in `load_class_folder`.
    c2_addresses : sequence of str or None, default=None
        Addresses of the command-and-control servers; None: the lines of ``c2_addresses.txt`` in ``folder``, where
        what follows a ``#`` is skipped.
    levels : dict of str to int or None, default=None
        Level of each capture by its path below ``folder``, for other layouts; None: by the names.
    sampler : FlowSampler, default=None
        Sampler to use; None: `sklearn_docids.paper.sampler` with ``fields="no_addresses"``, room for all flows, and no
        flow split. Level 2 is sampled as training data: with ``fields="paper"``, its addresses are random.
    cache_folder : path or None, default=None
        Folder for sampled flows, as in `load_cic_ids_2017`.
    random_state : int, RandomState instance or None, default=None
        Source of the random addresses of level 2; that of the sampler is not used.
    verbose : int, default=0
        1 prints a line per capture and the counts; 2 a line for every tenth of a capture.

    Returns
    -------
    Bunch
        ``X_train``, ``X_test``: ndarray of uint8, shape (n_flows, n_packets * n_bytes); ``y_test``: ndarray of int64,
        +1 normal and -1 attack; ``attack``: ndarray of str, ``"progress 7"``, ``"progress 8"`` or ""; ``capture_test``:
        ndarray of int64, number of the capture of each test flow; ``captures``: paths of the test captures; ``DESCR``:
        flows here and in the paper as text.

    Raises
    ------
    FileNotFoundError
        There is no capture of a level, or no list of addresses.
    ValueError
        An address is invalid, a path has two levels, a capture of level 2 has flows with a command-and-control server,
        those of levels 7 and 8 have none, or ``levels`` names a capture that is not there.
    CaptureError
        A file is not a capture.

    References
    ----------
    .. [1] MWS Datasets, https://www.iwsec.org/mws/datasets.html

    Examples
    --------
    >>> from sklearn_docids.datasets import load_bos_2018
    >>> data = load_bos_2018("BOS_2018", c2_addresses=["192.0.2.10"], random_state=0)  # doctest: +SKIP
    """
    home = Path(folder)
    servers = _addresses(home, c2_addresses)
    by_level = captures_by_level(home, levels)
    sampler = (
        paper.sampler(fields="no_addresses", max_live_flows=MOST_LIVE_FLOWS) if sampler is None else clone(sampler)
    )
    sampler.set_params(verbose=verbose)
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    train: list[np.ndarray] = []
    for path in by_level[TRAIN_LEVEL]:
        flows = captured_flows(path, sampler, cache_folder)
        if np.isin(flows.src_ip, servers).any() or np.isin(flows.dst_ip, servers).any():
            raise ValueError(f"{path} is of level {TRAIN_LEVEL}, but holds flows with a command-and-control server")
        train.append(as_sampled(flows, sampler, training=True, seed=seed + len(train)))
    rows, attacks, captures = [], [], []
    for level in TEST_LEVELS:
        for path in by_level[level]:
            flows = captured_flows(path, sampler, cache_folder)
            with_server = np.isin(flows.src_ip, servers) | np.isin(flows.dst_ip, servers)
            rows.append(as_sampled(flows, sampler, training=False, seed=seed))
            attacks.append(np.where(with_server, f"progress {level}", ""))
            captures.append(path)
    attack = np.concatenate(attacks)
    if not (attack != "").any():
        raise ValueError(f"no flow of levels {TEST_LEVELS} has one of the {len(servers)} command-and-control servers")
    data = Bunch(
        X_train=np.concatenate(train),
        X_test=np.concatenate(rows),
        y_test=np.where(attack == "", 1, -1),
        attack=attack,
        capture_test=np.repeat(np.arange(len(rows)), [len(part) for part in rows]),
        captures=captures,
    )
    data.DESCR = _described(data)
    if verbose:
        print(data.DESCR, flush=True)
    return data


def _addresses(home: Path, given: Sequence[str] | None) -> list[str]:
    """Return the addresses of the servers as flow tables write them."""
    lines = given
    if lines is None:
        path = home / ADDRESS_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: write the addresses of the command-and-control servers into it, one a line, or "
                f"give c2_addresses; they come with the MWS Datasets ({HOME})"
            )
        # Bytes that are not text make no address, and are named as such below.
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            text = file.read(MOST_ADDRESS_CHARACTERS + 1)
        if len(text) > MOST_ADDRESS_CHARACTERS:
            raise ValueError(
                f"{path} has more than {MOST_ADDRESS_CHARACTERS} characters: it must hold nothing but the addresses of "
                "the command-and-control servers, one a line"
            )
        lines = [line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line]
    if isinstance(lines, str) or not len(lines):
        raise ValueError(f"c2_addresses must be a list of at least one address, got {lines!r}")
    source = "c2_addresses" if given is not None else str(home / ADDRESS_FILE)
    try:
        return [str(ipaddress.ip_address(line)) for line in lines]
    except ValueError as error:
        raise ValueError(f"{source}: {str(error)[:200]}") from None


def captures_by_level(home: Path, levels: dict[str, int] | None) -> dict[int, list[Path]]:
    """Return the captures of each level that is used.

    Raises
    ------
    FileNotFoundError
        A level has none.
    ValueError
        ``levels`` names a capture that is not there.
    """
    found: dict[int, list[Path]] = {level: [] for level in (TRAIN_LEVEL, *TEST_LEVELS)}
    paths = files_of(home, (path for path in paths_below(home) if ".pcap" in path.name.lower()))
    below = {path.relative_to(home).as_posix(): path for path in paths}
    absent = sorted(set(levels or ()) - set(below))
    if absent:
        raise ValueError(f"levels names captures that {home} does not have: {', '.join(absent)}")
    for name, path in below.items():
        level = level_of(name) if levels is None else levels.get(name)
        if level in found:
            found[level].append(path)
    missing = [str(level) for level, of_level in found.items() if not of_level]
    if missing:
        raise FileNotFoundError(
            f"{home} has no captures of progress level {', '.join(missing)}; BOS 2018 comes with the MWS Datasets "
            f"({HOME}); give levels={{...}} if its files are called otherwise"
        )
    return found


def level_of(name: str) -> int | None:
    """Return the level in a path, or None.

    Raises
    ------
    ValueError
        There are two.
    """
    found = {int(match[1]) for match in LEVEL.finditer(name)}
    if len(found) > 1:
        raise ValueError(f"{name} has the levels {sorted(found)} in its path: give levels={{...}}")
    return found.pop() if found else None


def _described(data: Bunch) -> str:
    text = "BOS 2018: flows here and in the paper.\n\n"
    counts = {"train": len(data.X_train), "normal": int(np.sum(data.attack == ""))}
    counts |= {f"progress {level}": int(np.sum(data.attack == f"progress {level}")) for level in TEST_LEVELS}
    return text + "".join(f"{name}: {count} ({PAPER_COUNTS[name]})\n" for name, count in counts.items())
