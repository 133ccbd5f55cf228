# SPDX-License-Identifier: BSD-3-Clause
"""Hosts of the testbed: network namespaces on one switch, none of which has a way out.

`seal` moves the running program into namespaces of its own before anything else happens. Hosts, users, processes and
mounts are made inside them, and all of it is gone when the program ends, however it ends.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

SEALED = "TESTBED_SEALED"
# System folders that programs write to; what is written lies in memory and is lost.
OVERLAID = ("/dev", "/etc", "/home", "/root", "/tmp", "/var")
# Captures are bounded whatever the programs do.
MOST_PACKETS = 2_000_000
OUTSIDE = "192.0.2.1"
OUTPUT = Path("/mnt/output")
MACHINE = "office"


class RouteOutError(RuntimeError):
    """A host of the testbed could reach something that is not of the testbed."""


def seal(output: Path) -> None:
    """Start this program again in namespaces of its own; inside them, return, with ``output`` mounted as `OUTPUT`.

    Networks, processes, mounts and names are its own; the only thing it shares with the machine for writing is
    ``output``.
    """
    if os.geteuid() != 0:
        raise SystemExit("the testbed makes network namespaces, and needs root for it")
    if os.environ.get(SEALED) != str(os.getpid()):
        # The new program is the first of its process namespace: when it ends, the kernel ends all the others.
        os.environ[SEALED] = "1"
        kinds = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
        arguments = ["unshare", *kinds, sys.executable, *sys.argv]
        os.execvp("unshare", arguments)
    check_no_route_out([])
    for name in ("/run", "/mnt"):
        mount("-t", "tmpfs", "tmpfs", name)
    OUTPUT.mkdir()
    mount("--bind", str(output), str(OUTPUT))
    for name in OVERLAID:
        upper, work = Path("/mnt", "upper" + name), Path("/mnt", "work" + name)
        upper.mkdir(parents=True)
        work.mkdir(parents=True)
        shutil.copystat(name, upper)  # the mode of the folder is that of the upper one
        options = f"lowerdir={name},upperdir={upper},workdir={work}"
        mount("-t", "overlay", "overlay", "-o", options, name)
    mount("-t", "devpts", "devpts", "/dev/pts")
    mount("-t", "tmpfs", "tmpfs", "/dev/shm")
    # What is left of the machine can be read. (The kernel's own switches in /proc and /sys are not covered by this.)
    mount("-o", "remount,bind,ro", "/")
    # Programs write the name of their machine into what they send.
    socket.sethostname(MACHINE)


def mount(*arguments: str) -> None:
    """Run mount."""
    subprocess.run(["mount", *arguments], check=True)


def check_no_route_out(namespace: list[str]) -> None:
    """Refuse a namespace from which an address outside the testbed can be reached.

    Raises
    ------
    RouteOutError
        There is a route to it, or nobody can tell.
    """
    command = [*namespace, "ip", "-json", "route", "get", OUTSIDE]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        raise RouteOutError(f"there is a route out: {json.loads(found.stdout)}")
    if "unreachable" not in found.stderr:
        raise RouteOutError(f"it cannot be told whether there is a route out: {found.stderr}")


class Switch:
    """One Ethernet segment: a bridge without an address in a namespace of its own, where traffic is captured."""

    def __init__(self, name: str, subnet: str, folder: Path):
        self.name = name
        self.network = ipaddress.ip_network(subnet)
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        ip("netns", "add", name)
        ip("-n", name, "link", "add", "bridge", "type", "bridge")
        ip("-n", name, "link", "set", "bridge", "up")

    def add(self, name: str, number: int) -> Host:
        """Return a new host with address ``number`` of the network."""
        host = Host(name, str(self.network[number]), self.folder / name)
        ip("netns", "add", name)
        port = f"port{number}"
        ip("link", "add", port, "netns", self.name, "type", "veth", "peer", "name", "eth0", "netns", name)
        hardware = bytes([2, 0x42, *ipaddress.ip_address(host.address).packed]).hex(":")
        ip("-n", name, "link", "set", "eth0", "address", hardware)
        # Real checksums and packets that fit the wire; no IPv6, whose hosts talk by themselves.
        for namespace, device in ((self.name, port), (name, "eth0")):
            run_in(namespace, ["ethtool", "-K", device, "tx", "off", "tso", "off", "gso", "off", "gro", "off"])
            run_in(namespace, ["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"])
        ip("-n", self.name, "link", "set", port, "master", "bridge", "up")
        ip("-n", name, "address", "add", f"{host.address}/{self.network.prefixlen}", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", name, "link", "set", device, "up")
        check_no_route_out(["ip", "netns", "exec", name])
        self.hosts[name] = host
        return host

    def capture(self, path: Path) -> subprocess.Popen[bytes]:
        """Start to capture all TCP and UDP packets of the segment."""
        command = ["tcpdump", "-q", "-i", "bridge", "-s", "0", "-B", "65536", "-Z", "root"]
        command += ["-c", str(MOST_PACKETS), "-w", str(path), "ip and (tcp or udp)"]
        with path.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(["ip", "netns", "exec", self.name, *command], stderr=log)
        wait_until(lambda: b"listening on" in path.with_suffix(".log").read_bytes(), "tcpdump")
        return process

    def remove(self) -> None:
        """End all programs of the hosts and remove them."""
        for host in self.hosts.values():
            host.stop()
            ip("netns", "delete", host.name)
            shutil.rmtree(host.folder)
        ip("netns", "delete", self.name)


def end_capture(process: subprocess.Popen[bytes], path: Path) -> None:
    """End a capture; packets that the kernel had to drop are an error, since labels would not be whole.

    Raises
    ------
    RuntimeError
        Packets were dropped, or the capture ended before.
    """
    time.sleep(1.5)  # packets on their way to tcpdump
    if process.poll() is not None:
        raise RuntimeError(f"the capture {path} ended by itself, at {MOST_PACKETS} packets or before")
    process.terminate()
    process.wait(timeout=30)
    log = path.with_suffix(".log").read_text()
    if "\n0 packets dropped by kernel" not in log:
        raise RuntimeError(f"the capture {path} is not whole: {log}")


class Host:
    """A host: a network namespace with one interface, an address, and a folder for its files."""

    def __init__(self, name: str, address: str, folder: Path):
        self.name = name
        self.address = address
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)

    def write(self, name: str, text: str) -> Path:
        """Write a file into the host's folder and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(self, command: list[str]) -> None:
        """Run a program to its end; it must succeed."""
        run_in(self.name, command)

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a program that stays; its output goes to a file of the host's folder."""
        with (self.folder / f"{Path(command[0]).name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.folder,
            )  # fmt: skip
        self.started.append(process)
        return process

    def serve(self, command: list[str], port: int, kind: str = "tcp") -> None:
        """Start a server and wait until it listens on its port."""
        self.start(command)
        question = ["ss", "-Hln", "--tcp" if kind == "tcp" else "--udp", f"sport = :{port}"]
        wait_until(lambda: run_in(self.name, question).strip() != b"", f"{command[0]} on {self.name}")

    def stop(self) -> None:
        """End all programs of this host."""
        for number in run_in(None, ["ip", "netns", "pids", self.name]).split():
            subprocess.run(["kill", "-9", number], check=False)
        for process in self.started:
            process.wait()
        self.started.clear()


def ip(*arguments: str) -> None:
    """Run iproute2's ip."""
    run_in(None, ["ip", *arguments])


def run_in(namespace: str | None, command: list[str]) -> bytes:
    """Run a program in a host's namespace, or in this one, and return what it prints; it must succeed."""
    prefix = ["ip", "netns", "exec", namespace] if namespace else []
    done = subprocess.run([*prefix, *command], stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} failed on {namespace or 'the machine'}: {done.stderr.decode()[-2000:]}")
    return done.stdout


def wait_until(condition, what: str, seconds: float = 20.0) -> None:
    """Wait until a condition holds.

    Raises
    ------
    TimeoutError
        It does not hold in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not start within {seconds:.0f} s")
        time.sleep(0.05)


def check_programs(names: list[str]) -> None:
    """Refuse to begin where programs are missing."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"missing programs: {', '.join(missing)}; install the packages of testbed/packages.txt")
