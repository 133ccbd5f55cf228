# SPDX-License-Identifier: BSD-3-Clause
"""Packets from a network interface: through tcpdump or dumpcap, which alone need the right to capture; else scapy."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from sklearn_docids._text import printable
from sklearn_docids._watch.signals import Signals
from sklearn_docids._watch.streams import Event, StreamSource
from sklearn_docids.exceptions import CaptureError

# MiB of kernel memory for packets on their way to the helper: some seconds of a fast link.
KERNEL_MIB = 32
STARTS_WITHIN_S, COUNTS_WITHIN_S, ENDS_WITHIN_S = 10.0, 0.3, 2.0
# What helpers say at the end, and tcpdump on SIGUSR1 as well.
DROPPED = re.compile(r"(\d+) packets? dropped by (kernel|interface)")
DROPPED_BY_DUMPCAP = re.compile(r"Packets received/dropped on interface .*: \d+/(\d+)")
NO_RIGHT = re.compile("permi", re.IGNORECASE)  # permission, not permitted
PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 0)
SOL_PACKET, PACKET_STATISTICS = 263, 6


class Helper(Protocol):
    """Who captures: writes a capture to a pipe, and knows what was dropped."""

    descriptor: int

    def drops(self) -> dict[str, int]:
        """Return counts of packets that were dropped before they reached us."""

    def end(self) -> None:
        """Ask it to end."""

    def failure(self) -> str:
        """Return why it has ended."""

    def close(self) -> None:
        """Wait until it has ended."""


def interfaces() -> list[str]:
    """Return the names of the interfaces of this machine."""
    return [name for _, name in socket.if_nameindex()]


def command_of(program: str, interface: str, capture_filter: str | None, snapshot_length: int | None) -> list[str]:
    """Return the command line that writes what an interface sees to standard output."""
    limit = [] if snapshot_length is None else ["-s", str(snapshot_length)]
    if os.path.basename(program) == "dumpcap":
        wanted = [] if capture_filter is None else ["-f", capture_filter]
        return [program, "-i", interface, "-w", "-", "-q", "-B", str(KERNEL_MIB), *limit, *wanted]
    # In immediate mode the kernel hands on a packet when it comes, otherwise up to a second later.
    options = ["-U", "--immediate-mode", "-n", "-B", str(KERNEL_MIB * 1024)]
    # Behind the two dashes, no filter is taken for an option.
    wanted = [] if capture_filter is None else ["--", capture_filter]
    return [program, "-i", interface, "-w", "-", *options, *limit, *wanted]


def check_filter(capture_filter: str) -> None:
    """Refuse a filter that cannot be compiled, where tcpdump is there to try.

    Raises
    ------
    ValueError
        With what tcpdump says.
    """
    program = shutil.which("tcpdump")
    if program is None:
        return
    tried = subprocess.run([program, "-y", "EN10MB", "-d", "--", capture_filter], capture_output=True, text=True)
    if tried.returncode:
        raise ValueError(f"--filter {capture_filter!r}: {_last(tried.stderr.splitlines())}")


def started(interface: str, capture_filter: str | None, snapshot_length: int | None) -> Helper:
    """Return the first helper that captures.

    Raises
    ------
    OSError
        There is no such interface, or none of those that are there may capture on it.
    """
    if interface not in [*interfaces(), "any"]:
        raise FileNotFoundError(f"there is no interface {interface}; there are {', '.join(interfaces())}")
    programs = [found for found in map(shutil.which, ("tcpdump", "dumpcap")) if found]
    said = []
    for program in programs:
        helper = Program(command_of(program, interface, capture_filter, snapshot_length))
        if helper.has_begun():
            return helper
        helper.close()
        said.append(helper.failure())
    if not programs:
        return Sniffer(interface, capture_filter, snapshot_length)
    text = "; ".join(said)
    remedy = ""
    if NO_RIGHT.search(text):
        remedy = f": run as root, or give the right to the helper alone: setcap cap_net_raw+ep {programs[0]}"
    raise PermissionError(f"nothing can be captured on {interface}: {text}{remedy}")


class Program:
    """tcpdump or dumpcap, with its capture on a pipe."""

    def __init__(self, command: Sequence[str]):
        self._name = os.path.basename(command[0])
        # In a session of its own: Ctrl-C is for us, who end it and read what is on its way.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None
        self.descriptor: int = self._process.stdout.fileno()
        self._said: deque[str] = deque(maxlen=20)
        self._drops: dict[str, int] = {}
        self._counted = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def has_begun(self) -> bool:
        """Wait until it writes or ends; return whether it writes."""
        ready = select.select([self.descriptor], [], [], STARTS_WITHIN_S)[0]
        return bool(ready) and struct.unpack("i", fcntl.ioctl(self.descriptor, termios.FIONREAD, bytes(4)))[0] > 0

    def drops(self) -> dict[str, int]:
        """Return what it has counted; only tcpdump says it before its end."""
        if self._name == "tcpdump" and self._process.poll() is None:
            with self._counted:
                self._process.send_signal(signal.SIGUSR1)
                self._counted.wait(COUNTS_WITHIN_S)
        return dict(self._drops)

    def end(self) -> None:
        """Ask it to write what it has and to end."""
        self._process.terminate()

    def failure(self) -> str:
        """Return its last words, or its exit status."""
        last = _last([line for line in self._said if not DROPPED.search(line)])
        return f"{self._name}: {last or f'ended with status {self._process.returncode}'}"

    def close(self) -> None:
        """Wait for its end, and for its last counts."""
        self.end()
        assert self._process.stdout is not None
        self._process.stdout.close()
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(ENDS_WITHIN_S)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for raw in stream:
                self._heard(printable(raw.decode(errors="replace").strip()).removeprefix(f"{self._name}: "))

    def _heard(self, line: str) -> None:
        found = {f"{who}_drops": int(n) for n, who in DROPPED.findall(line)}
        by_dumpcap = DROPPED_BY_DUMPCAP.search(line)
        if by_dumpcap:
            found = {"kernel_drops": int(by_dumpcap[1])}
        with self._counted:
            self._said.append(line)
            self._drops.update(found)
            if found:
                self._counted.notify_all()


def _last(lines: Sequence[str]) -> str:
    """Return the last line that says something, with what stands in front of one in parentheses."""
    said = [line.strip() for line in lines if line.strip()]
    if len(said) > 1 and said[-1].startswith("("):
        return f"{said[-2]} {said[-1]}"
    return said[-1] if said else ""


class Sniffer:
    """scapy's socket, read in a thread; where we do not keep up with it, packets are dropped and counted."""

    def __init__(self, interface: str, capture_filter: str | None, snapshot_length: int | None):
        from scapy.all import conf  # what only looks like a variable is set where all of scapy is loaded
        from scapy.error import Scapy_Exception

        try:
            self._socket: Any = conf.L2listen(iface=interface, filter=capture_filter)
        except (OSError, Scapy_Exception) as error:
            raise PermissionError(
                f"nothing can be captured on {interface}: neither tcpdump nor dumpcap is installed, and this process "
                f"may not: {printable(error)}; install tcpdump, or run as root"
            ) from None
        with suppress(OSError, AttributeError):  # the system may grant less, and some have no such socket
            self._socket.ins.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_MIB * 2**20)
        self._limit = snapshot_length or 262_144
        self.descriptor, self._out = os.pipe()
        os.set_blocking(self._out, False)
        self._ended = threading.Event()
        self._why = ""
        self._drops = {"kernel_drops": 0, "queue_drops": 0}
        self._rest = PCAP_HEADER[:-4] + struct.pack("<I", self._link_type())
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def drops(self) -> dict[str, int]:
        """Return what the kernel and we have dropped."""
        with suppress(OSError, AttributeError, ValueError):  # the kernel counts anew after each look
            counts = self._socket.ins.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
            self._drops["kernel_drops"] += struct.unpack("II", counts)[1]
        return dict(self._drops)

    def end(self) -> None:
        """Stop."""
        self._ended.set()

    def failure(self) -> str:
        """Return why it has ended."""
        return f"scapy: {self._why or 'ended'}"

    def close(self) -> None:
        """Wait until it has stopped."""
        self.end()
        self._thread.join(ENDS_WITHIN_S)
        if self.descriptor >= 0:
            self.drops()
            self._socket.close()
            os.close(self.descriptor)
            self.descriptor = -1

    def _link_type(self) -> int:
        from scapy.config import conf

        return int(conf.l2types.layer2num.get(self._socket.LL, 1))

    def _copy(self) -> None:
        try:
            while not self._ended.is_set():
                if not select.select([self._socket], [], [], 0.1)[0]:
                    self._write(b"")
                    continue
                _, packet, when = self._socket.recv_raw()
                if packet:
                    self._take(packet, when or time.time())
        except OSError as error:
            self._why = printable(error)
        finally:
            os.close(self._out)

    def _take(self, packet: bytes, when: float) -> None:
        kept, micros = packet[: self._limit], int(when * 1e6)
        record = struct.pack("<IIII", micros // 10**6, micros % 10**6, len(kept), len(packet)) + kept
        self._write(b"")
        if self._rest:
            self._drops["queue_drops"] += 1
        else:
            self._write(record)

    def _write(self, record: bytes) -> None:
        """Write what there is room for, and keep the rest."""
        data = self._rest + record
        if not data:
            return
        try:
            self._rest = data[os.write(self._out, data) :]
        except BlockingIOError:
            self._rest = data


class InterfaceSource(StreamSource):
    """Packets of an interface, until it or its helper is gone."""

    def __init__(self, interface: str, helper: Helper, signals: Signals):
        super().__init__(helper.descriptor, interface, signals)
        self._helper = helper

    def events(self) -> Iterator[Event]:
        """Yield blocks of records, and None where nothing comes.

        Raises
        ------
        OSError
            The helper has ended by itself, as the interface is gone or somebody has killed it.
        """
        with suppress(CaptureError):  # cut where the helper has ended
            yield from super().events()
        self._helper.end()
        if not self._signals.stop:
            self._helper.close()
            raise OSError(f"nothing more can be captured on {self.name}: {self._helper.failure()}")

    def drops(self) -> dict[str, int]:
        """Return what the kernel, the interface and we have dropped."""
        return self._helper.drops()

    def close(self) -> None:
        """End the helper."""
        self._helper.close()

    def _end_writer(self) -> None:
        self._helper.end()
