# SPDX-License-Identifier: BSD-3-Clause
"""Allow-lists: rules that hide flagged flows when they are reported, so that old alarms vanish as well.

A list is a TOML file, of which nothing is executed::

    [[rule]]
    source = ["10.0.0.5", "10.1.0.0/16"]  # addresses and networks
    destination = "10.0.0.9"
    service = "tcp/8000-8100"             # or port = 443, of any protocol
    name = "*.example.org"                # what the flow asks for, where its bytes show it (`names`)
    view = "novelty"                      # only where this view is the main reason
    until = 2026-12-31                    # to the end of this day, UTC; or a time with zone
    why = "nightly backup of the file server"
    added = 2026-11-28

All keys of a rule must fit, one value of each. ``why`` is required, and one at least of the first five keys.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sklearn_docids._alarms.names import PROTOCOLS, asked_name
from sklearn_docids._warn import warn_caller

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

Network = IPv4Network | IPv6Network
Value = TypeVar("Value")

MAX_BYTES = 2**24
PORTS = (0, 65_535)
# Where more of what was flagged is hidden, one should look whether that is meant.
MOST_HIDDEN = 0.9
HEADER = re.compile(r"^[ \t]*\[\[[ \t]*rule[ \t]*\]\]", re.MULTILINE)
NOT_HIDDEN = -1


@dataclass(frozen=True, slots=True)
class AllowRule:
    """What a rule hides; an empty tuple stands for everything."""

    number: int  # in the file, from 1
    why: str
    source: tuple[Network, ...] = ()
    destination: tuple[Network, ...] = ()
    port: tuple[tuple[int, int], ...] = ()  # first and last
    service: tuple[tuple[int, int, int], ...] = ()  # protocol, first and last port
    name: tuple[str, ...] = ()  # lower case
    view: tuple[str, ...] = ()
    until: datetime | None = None
    added: date | None = None

    @property
    def label(self) -> str:
        """What outputs call the rule."""
        return f"rule {self.number}: {self.why}"

    @property
    def hides_the_same(self) -> tuple[object, ...]:
        """What two rules have in common that hide the same."""
        return self.source, self.destination, self.port, self.service, self.name, self.view

    def is_expired(self, now: datetime) -> bool:
        """Whether the rule does nothing any more."""
        return self.until is not None and now > self.until

    def is_boundless(self) -> bool:
        """Whether the rule hides all flows of an IP version, or of a protocol."""
        sides_are_open = not any(_all_bounded(side) for side in (self.source, self.destination))
        ports = self.port or tuple(service[1:] for service in self.service)
        return (
            sides_are_open
            and not self.name
            and (not ports or any(first <= 1 and last == 65_535 for first, last in ports))
        )


def _all_bounded(networks: Sequence[Network]) -> bool:
    return bool(networks) and all(network.prefixlen for network in networks)


@dataclass(frozen=True)
class Facts:
    """What rules look at, of flagged flows or of alarms that are stored: arrays of one length."""

    version: np.ndarray
    source: tuple[np.ndarray, np.ndarray]  # upper and lower 64 bits
    destination: tuple[np.ndarray, np.ndarray]
    port: np.ndarray
    protocol: np.ndarray
    name: Callable[[int], str]
    views: Sequence[str]
    # Alarms that stand for flows to several destinations, of which one alone is known.
    is_of_many: np.ndarray = field(default_factory=lambda: np.zeros(1, np.bool_))

    def __len__(self) -> int:
        return len(self.version)


class AllowList:
    """The rules of a file; the first one that fits hides a flow.

    Parameters
    ----------
    rules : sequence of AllowRule
        In order of the file.
    """

    def __init__(self, rules: Sequence[AllowRule]):
        self.rules: list[AllowRule] = list(rules)
        self._warned = False

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AllowList:
        """Read a file.

        Raises
        ------
        OSError
            It cannot be read.
        ValueError
            It is no allow-list; the message names file, rule, line and key.
        """
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        return cls.parse(content, os.fsdecode(path))

    @classmethod
    def parse(cls, content: bytes, path: str) -> AllowList:
        """Return the list that a file of this content is; raise as `load`."""
        if len(content) > MAX_BYTES:
            raise ValueError(f"{path} is no allow-list: it is longer than {MAX_BYTES // 2**20} MiB")
        try:
            text = content.decode("utf-8-sig")
            tables = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            reason = "values are nested too deeply" if isinstance(error, RecursionError) else error
            raise ValueError(f"{path} is no TOML: {reason}") from None
        _check_keys(tables, ("rule",), path)
        found = tables.get("rule", [])
        if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
            raise ValueError(f"{path}: rules begin with [[rule]], in double brackets")
        lines = [text.count("\n", 0, header.start()) + 1 for header in HEADER.finditer(text)]
        if len(lines) != len(found):  # written in another way
            lines = [0] * len(found)
        return cls(
            [
                _rule(n, table, _place(path, n, line))
                for n, (table, line) in enumerate(zip(found, lines, strict=True), 1)
            ]
        )

    def hides(
        self,
        flagged: FlowTable,
        names: Sequence[str] | None = None,
        *,
        views: Sequence[str] | None = None,
        now: datetime | None = None,
    ) -> np.ndarray:
        """Return which rule hides each flow.

        Parameters
        ----------
        flagged : FlowTable
            Flows.
        names : sequence of str, default=None
            The name that each asks for, empty where it is not known; None: taken from rows of payload.
        views : sequence of str, default=None
            The view that is the main reason of each, empty where there is none; None: nobody knows, and rules with a
            view hide nothing.
        now : datetime with zone, default=None
            When rules are looked at; None: now.

        Returns
        -------
        ndarray of int64, shape (n_flows,)
            Place of the rule in ``rules``, -1 if none hides the flow.
        """
        if names is None and flagged.layout != "payload" and any(rule.name for rule in self.rules) and not self._warned:
            self._warned = True
            numbers = ", ".join(str(rule.number) for rule in self.rules if rule.name)
            warn_caller(
                f"the allow-list has names in rules that hide nothing here ({numbers}): names are seen in rows of "
                "payload, and this model has rows of headers; give addresses"
            )
        records = flagged.rows.records
        return self.first_fitting(
            Facts(
                records["ip_version"], (records["src_high"], records["src_low"]),
                (records["dst_high"], records["dst_low"]), records["dst_port"], records["protocol"],
                (lambda row: asked_name(flagged, row)) if names is None else names.__getitem__,
                [""] * len(flagged) if views is None else views,
            ),
            now,
        )  # fmt: skip

    def first_fitting(self, facts: Facts, now: datetime | None = None) -> np.ndarray:
        """Return the place of the first rule that fits, -1 where none does."""
        now = datetime.now(UTC) if now is None else now
        found = np.full(len(facts), NOT_HIDDEN, np.int64)
        for place, rule in enumerate(self.rules):
            if not rule.is_expired(now):
                open_rows = np.flatnonzero(found == NOT_HIDDEN)
                found[open_rows[_fits(rule, facts, open_rows)]] = place
        return found

    def described(
        self, n_hidden: Sequence[int] | np.ndarray, n_flagged: int, now: datetime | None = None
    ) -> Iterator[str]:
        """Yield lines for people: what each rule hid, given the counts of all, and what should be looked at."""
        now = datetime.now(UTC) if now is None else now
        for rule, n in zip(self.rules, n_hidden, strict=True):
            if rule.until is not None and rule.is_expired(now):
                yield f"rule {rule.number} has expired on {rule.until:%Y-%m-%d %H:%M} UTC and hides nothing: {rule.why}"
            elif n:
                yield f"{n} hidden by rule {rule.number}: {rule.why}"
        total = int(sum(n_hidden))
        if hides_most(total, n_flagged):
            yield (
                f"the allow-list hides {total} of {n_flagged}, {total / n_flagged:.0%}: see whether its rules are "
                "wider than they should be"
            )


def hides_most(n_hidden: int, n_all: int) -> bool:
    """Whether so much is hidden that one should look whether that is meant."""
    return n_hidden > MOST_HIDDEN * n_all


# --------------------------------------------------------------------------------------------------------------------
# Whether rules fit


def _fits(rule: AllowRule, facts: Facts, rows: np.ndarray) -> np.ndarray:
    """Return whether a rule fits each of some rows."""
    fits = np.ones(len(rows), np.bool_)
    for networks, (high, low) in ((rule.source, facts.source), (rule.destination, facts.destination)):
        if networks:
            fits &= _in_networks(networks, facts.version[rows], high[rows], low[rows])
    port, protocol = facts.port[rows], facts.protocol[rows]
    if rule.port:
        fits &= _any((port >= first) & (port <= last) for first, last in rule.port)
    if rule.service:
        fits &= _any((protocol == p) & (port >= first) & (port <= last) for p, first, last in rule.service)
    if rule.destination or rule.port or rule.service or rule.name:
        fits &= ~np.broadcast_to(facts.is_of_many, len(facts))[rows]
    if rule.view:
        fits &= np.array([facts.views[row] in rule.view for row in rows.tolist()], np.bool_)
    if rule.name:
        for place in np.flatnonzero(fits).tolist():
            fits[place] = fits_name(rule.name, facts.name(int(rows[place])))
    return fits


def _any(masks: Iterable[np.ndarray]) -> np.ndarray:
    return np.logical_or.reduce(list(masks))


def _in_networks(networks: Sequence[Network], version: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    found = np.zeros(len(version), np.bool_)
    for network in networks:
        mask, address = int(network.netmask), int(network.network_address)
        found |= (
            (version == network.version)
            & (high & np.uint64(mask >> 64) == np.uint64(address >> 64))
            & (low & np.uint64(mask & (2**64 - 1)) == np.uint64(address & (2**64 - 1)))
        )
    return found


def fits_name(patterns: Sequence[str], name: str) -> bool:
    """Whether a name is one of those given, or, of ``*.example.org``, lies somewhere below ``example.org``."""
    return any(
        name.endswith(pattern[1:]) and len(name) >= len(pattern) if pattern.startswith("*.") else name == pattern
        for pattern in patterns
    )


# --------------------------------------------------------------------------------------------------------------------
# Reading rules


def _place(path: str, number: int, line: int) -> str:
    return f"{path}, rule {number}" + (f" (line {line})" if line else "")


def _check_keys(table: dict[str, Any], keys: Sequence[str], place: str) -> None:
    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(keys)}"
            raise ValueError(f"{place}: {key!r} is no key; {advice}")


def _rule(number: int, table: dict[str, Any], place: str) -> AllowRule:
    """Return the rule that a table is."""
    _check_keys(table, tuple(READERS), place)
    values: dict[str, Any] = {}
    for key, value in table.items():
        try:
            values[key] = READERS[key](value)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{place}: {key}: {error}") from None
    if "why" not in values:
        raise ValueError(f"{place}: why is missing: say in a few words why this is no alarm")
    rule = AllowRule(number=number, **values)
    if rule.is_boundless():
        raise ValueError(
            f"{place}: it would hide everything, or all of an IP version or protocol: say whose flows (source, "
            "destination), to what (port, service), or for which name"
        )
    return rule


def _each(value: Any, read: Callable[[Any], Value]) -> tuple[Value, ...]:
    """Return what one value or each of a list is."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("the list is empty; leave the key out for any value")
    return tuple(read(each) for each in values)


def _networks(value: Any) -> tuple[Network, ...]:
    networks = _each(value, _network)
    # Two halves of everything are everything.
    return (
        *collapse_addresses([network for network in networks if isinstance(network, IPv4Network)]),
        *collapse_addresses([network for network in networks if isinstance(network, IPv6Network)]),
    )


def _network(value: Any) -> Network:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no address or network: those are text, in quotes")
    try:
        return ip_network(value)
    except ValueError:
        try:
            near = f"; did you mean {ip_network(value, strict=False)}, or the address alone?"
        except ValueError:
            near = ", such as 10.0.0.5, 10.0.0.0/24 or 2001:db8::/32"
        raise ValueError(f"{value!r} is no address or network{near}") from None


def _ports(value: Any) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(_each(value, _port_range)))


def _port_range(value: Any) -> tuple[int, int]:
    text = str(value) if type(value) is int else value
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text, re.ASCII) if isinstance(text, str) else None
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not PORTS[0] <= first <= last <= PORTS[1]:
        raise ValueError(f'{value!r} is no port or range of ports, such as 443 or "8000-8100"')
    return first, last


def _services(value: Any) -> tuple[tuple[int, int, int], ...]:
    return tuple(sorted(_each(value, _service)))


def _service(value: Any) -> tuple[int, int, int]:
    protocol, _, port = value.partition("/") if isinstance(value, str) else ("", "", "")
    if protocol not in PROTOCOLS:
        raise ValueError(f'{value!r} is no service, such as "tcp/443" or "udp/5000-5100"')
    return PROTOCOLS[protocol], *_port_range(port)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(sorted(_each(value, _name)))


def _name(value: Any) -> str:
    text = value.lower().rstrip(".") if isinstance(value, str) else ""
    star, rest = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    try:
        name = rest.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ValueError(f'{value!r} is no name, such as "www.example.org", or "*.example.org" for all names below')
    return star + name


def _views(value: Any) -> tuple[str, ...]:
    return tuple(sorted(_each(value, _text)))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text, or an empty one")
    return value


def until(value: Any) -> datetime:
    """Return the last moment of a day, or a time."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{value} has no zone: add Z for UTC, or one such as +02:00")
        return value.astimezone(UTC)
    if isinstance(value, date):
        return datetime.combine(value, time.max, UTC)
    raise ValueError(f"{value!r} is no date or time, such as 2026-12-31 or 2026-12-31T18:00:00Z, without quotes")


def _date(value: Any) -> date:
    if not isinstance(value, date):
        raise ValueError(f"{value!r} is no date or time, such as 2026-12-31, without quotes")
    return value


READERS: dict[str, Callable[[Any], Any]] = {
    "source": _networks, "destination": _networks, "port": _ports, "service": _services, "name": _names,
    "view": _views, "until": until, "why": _text, "added": _date,
}  # fmt: skip
