# SPDX-License-Identifier: BSD-3-Clause
"""Synthetic captures: dialogues of common protocols between made-up hosts, normal ones and attacks among them.

Attacks come from the same hosts through the same stack as normal traffic, to the same ports; what differs is what is
said. TTL and the number of packets do not give them away. Packet lengths do, for a detector that was shown attacks:
DNS tunnels and exfiltration send more per packet than what is normal on their ports.
"""

from __future__ import annotations

import base64
import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import Bunch, check_random_state

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

# One turn of a dialogue: (the client speaks, bytes).
Dialogue = list[tuple[bool, bytes]]
START_S, SPAN_S = 1_760_000_000, 3600.0

WORDS = """
    account admin alpha api archive asset backup blog board book build cache calendar camera chart chat client cloud
    code contact cpu data demo desk doc draft edge event feed file flow forum fund game geo graph group guide help
    home host icon image index info item job key lab lead link list live local log mail main map media menu meta
    mobile model music net news note office order page panel part photo plan play portal post print queue report
    room root sale search shop site sport staff star stat stock store stream style sync table tag task team test
    text time tool track trade travel tree update user video view wiki work zone
""".split()  # noqa: SIM905 - a list of words is words
USER_AGENTS = ("Mozilla/5.0 (X11; Linux x86_64) Firefox/128.0", "Mozilla/5.0 (Windows NT 10.0) Edg/126.0", "curl/8.5.0")


@dataclass(frozen=True)
class Site:
    """Names and addresses of one network; two sites share protocols, not words."""

    clients: list[str]
    servers: list[str]
    words: list[str]
    ttl: int


def _site(rng: Random, prefix: str, ttl: int) -> Site:
    return Site(
        [f"{prefix}.{host}" for host in rng.sample(range(10, 200), 20)],
        [f"198.51.100.{host}" for host in rng.sample(range(1, 255), 12)],
        rng.sample(WORDS, 30),
        ttl,
    )


def _window(host: str) -> int:
    """Return the TCP window a host opens with: a matter of its system, the same for all it says."""
    return (64240, 65535, 8192)[int(host.rsplit(".", 1)[1]) % 3]


def _text(rng: Random, low: int, high: int) -> bytes:
    return rng.randbytes(rng.randint(low, high))


def _path(rng: Random, site: Site) -> str:
    parts = rng.choices(site.words, k=rng.randint(1, 3))
    return "/" + "/".join(parts) + rng.choice(("", ".html", ".js", ".png", "/", f"?id={rng.randint(1, 9999)}"))


def _host(rng: Random, site: Site) -> str:
    return f"{rng.choice(('www', 'cdn', 'api', 'static'))}.{rng.choice(site.words)}{rng.choice(site.words)}.example"


def _http_exchange(rng: Random, site: Site, request: str, body: bytes = b"") -> Dialogue:
    head = f"{request} HTTP/1.1\r\nHost: {_host(rng, site)}\r\nUser-Agent: {rng.choice(USER_AGENTS)}\r\n\r\n"
    status = rng.choice(("200 OK", "200 OK", "200 OK", "304 Not Modified", "404 Not Found"))
    answer = f"HTTP/1.1 {status}\r\nServer: nginx\r\nContent-Type: text/html\r\n\r\n".encode() + _text(rng, 40, 400)
    return [(True, head.encode() + body), (False, answer)]


def _http(rng: Random, site: Site) -> Dialogue:
    turns = []
    for _ in range(rng.randint(1, 3)):
        method = rng.choice(("GET", "GET", "GET", "HEAD", "POST"))
        body = f"{rng.choice(site.words)}={rng.choice(site.words)}".encode() if method == "POST" else b""
        turns += _http_exchange(rng, site, f"{method} {_path(rng, site)}", body)
    return turns


def _tls_record(kind: int, body: bytes) -> bytes:
    return bytes([kind, 3, 3]) + len(body).to_bytes(2, "big") + body


def _tls(rng: Random, site: Site) -> Dialogue:
    name = _host(rng, site).encode()
    hello = b"\x03\x03" + rng.randbytes(32) + b"\x20" + rng.randbytes(32) + b"\x00\x08\x13\x01\x13\x02\xc0\x2f\xc0\x30"
    hello += b"\x01\x00" + b"\x00\x00" + (len(name) + 5).to_bytes(2, "big") + name + _text(rng, 60, 200)
    server = b"\x02\x00\x00\x56\x03\x03" + rng.randbytes(80)
    turns = [
        (True, _tls_record(22, b"\x01\x00" + len(hello).to_bytes(2, "big") + hello)),
        (False, _tls_record(22, server) + _tls_record(23, _text(rng, 200, 800))),
    ]
    for _ in range(rng.randint(1, 2)):
        turns += [(True, _tls_record(23, _text(rng, 60, 400))), (False, _tls_record(23, _text(rng, 60, 900)))]
    return turns


def _dns_message(rng: Random, name: str, kind: int) -> Dialogue:
    number = rng.randbytes(2)
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    question = labels + b"\x00" + kind.to_bytes(2, "big") + b"\x00\x01"
    answer = b"\xc0\x0c" + kind.to_bytes(2, "big") + b"\x00\x01\x00\x00\x01\x2c"
    data = rng.randbytes(4 if kind == 1 else rng.randint(16, 60))
    answer += len(data).to_bytes(2, "big") + data
    return [
        (True, number + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + question),
        (False, number + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00" + question + answer),
    ]


def _dns(rng: Random, site: Site) -> Dialogue:
    return _dns_message(rng, _host(rng, site), rng.choice((1, 1, 28, 65)))


def _ssh_start(rng: Random, client: str) -> Dialogue:
    kex = b"\x00\x00\x04\x1c\x0a\x14" + rng.randbytes(16) + b"curve25519-sha256,ecdh-sha2-nistp256"
    # The client speaks first, as OpenSSH does: its banner is the fourth packet and thus among those sampled.
    return [(True, f"SSH-2.0-{client}\r\n".encode()), (False, b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"), (False, kex)]


def _ssh(rng: Random, site: Site) -> Dialogue:
    client = rng.choice(("OpenSSH_9.2p1 Debian-2", "OpenSSH_for_Windows_9.5", "PuTTY_Release_0.81"))
    turns = _ssh_start(rng, client)
    for _ in range(rng.randint(1, 3)):
        turns += [(True, _text(rng, 40, 200)), (False, _text(rng, 40, 400))]
    return turns


def _smtp(rng: Random, site: Site) -> Dialogue:
    sender, receiver = rng.choice(site.words), rng.choice(site.words)
    return [
        (False, f"220 mail.{sender}.example ESMTP\r\n".encode()),
        (True, f"EHLO {rng.choice(site.words)}.example\r\n".encode()),
        (False, b"250-PIPELINING\r\n250 8BITMIME\r\n"),
        (True, f"MAIL FROM:<{sender}@{receiver}.example>\r\n".encode()),
        (False, b"250 2.1.0 Ok\r\n"),
    ]


def _imap(rng: Random, site: Site) -> Dialogue:
    return [
        (False, b"* OK [CAPABILITY IMAP4rev1 IDLE] ready\r\n"),
        (True, f"a{rng.randint(1, 99)} LOGIN {rng.choice(site.words)} {rng.choice(site.words)}\r\n".encode()),
        (False, b"a1 OK Logged in\r\n"),
        (True, b"a2 SELECT INBOX\r\n"),
        (False, f"* {rng.randint(1, 999)} EXISTS\r\n".encode()),
    ]


def _ftp(rng: Random, site: Site) -> Dialogue:
    return [
        (False, b"220 (vsFTPd 3.0.3)\r\n"),
        (True, f"USER {rng.choice(site.words)}\r\n".encode()),
        (False, b"331 Please specify the password.\r\n"),
        (True, f"PASS {rng.choice(site.words)}{rng.randint(1, 99)}\r\n".encode()),
        (False, b"230 Login successful.\r\n"),
    ]


def _ntp(rng: Random, site: Site) -> Dialogue:
    return [
        (True, b"\x23\x00\x06\xec" + bytes(36) + rng.randbytes(8)),
        (False, b"\x24\x02\x06\xec" + rng.randbytes(44)),
    ]


def _mqtt(rng: Random, site: Site) -> Dialogue:
    name = f"{rng.choice(site.words)}-{rng.randint(1, 99)}".encode()
    connect = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(name).to_bytes(2, "big") + name
    topic = f"{rng.choice(site.words)}/{rng.choice(site.words)}".encode()
    publish = len(topic).to_bytes(2, "big") + topic + str(rng.randint(0, 9999)).encode()
    return [
        (True, b"\x10" + bytes([len(connect)]) + connect),
        (False, b"\x20\x02\x00\x00"),
        (True, b"\x30" + bytes([len(publish)]) + publish),
    ]


def _sip(rng: Random, site: Site) -> Dialogue:
    user, domain = rng.choice(site.words), rng.choice(site.words)
    method = rng.choice(("REGISTER", "OPTIONS", "INVITE"))
    return [
        (True, f"{method} sip:{user}@{domain}.example SIP/2.0\r\nVia: SIP/2.0/UDP\r\n\r\n".encode()),
        (False, b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP\r\n\r\n"),
    ]


def _syslog(rng: Random, site: Site) -> Dialogue:
    lines = rng.randint(1, 3)
    return [(True, f"<{rng.randint(0, 191)}>1 {rng.choice(site.words)}: {_path(rng, site)}".encode())] * lines


def _redis(rng: Random, site: Site) -> Dialogue:
    turns = []
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(site.words)
        turns += [(True, f"*2\r\n$3\r\nGET\r\n${len(key)}\r\n{key}\r\n".encode()), (False, b"$2\r\nok\r\n")]
    return turns


def _beacon(rng: Random, site: Site) -> Dialogue:
    turns = []
    for _ in range(rng.randint(1, 3)):
        turns += _http_exchange(rng, site, f"GET /{rng.randbytes(rng.randint(8, 20)).hex()}")
    return turns


def _injection(rng: Random, site: Site) -> Dialogue:
    turns = []
    for _ in range(rng.randint(1, 3)):
        trick = rng.choice(("'%20OR%201=1--", "%27;DROP%20TABLE%20", "../../../etc/passwd", "<script>alert("))
        turns += _http_exchange(rng, site, f"GET /{rng.choice(site.words)}?q={trick}{rng.choice(site.words)}")
    return turns


def _dns_tunnel(rng: Random, site: Site) -> Dialogue:
    data = base64.b32encode(rng.randbytes(rng.randint(20, 35))).decode().lower().rstrip("=")
    return _dns_message(rng, f"{data}.t.{rng.choice(site.words)}.example", 16)


def _ssh_guessing(rng: Random, site: Site) -> Dialogue:
    turns = _ssh_start(rng, rng.choice(("libssh2_1.11.0", "Go", "paramiko_3.4.0")))
    for _ in range(rng.randint(1, 3)):
        turns += [(True, _text(rng, 64, 96)), (False, _text(rng, 40, 60))]
    return turns


def _exfiltration(rng: Random, site: Site) -> Dialogue:
    turns = [(True, rng.randbytes(8) + _text(rng, 300, 900)), (False, rng.randbytes(16))]
    for _ in range(rng.randint(1, 2)):
        turns += [(True, _text(rng, 300, 900)), (False, rng.randbytes(16))]
    return turns


# Name -> (dialogue, UDP, server port).
PROTOCOLS: dict[str, tuple[Callable[[Random, Site], Dialogue], bool, int]] = {
    "dns": (_dns, True, 53),
    "ftp": (_ftp, False, 21),
    "http": (_http, False, 80),
    "imap": (_imap, False, 143),
    "mqtt": (_mqtt, False, 1883),
    "ntp": (_ntp, True, 123),
    "redis": (_redis, False, 6379),
    "sip": (_sip, True, 5060),
    "smtp": (_smtp, False, 25),
    "ssh": (_ssh, False, 22),
    "syslog": (_syslog, True, 514),
    "tls": (_tls, False, 443),
}
ATTACKS: dict[str, tuple[Callable[[Random, Site], Dialogue], bool, int]] = {
    "beacon": (_beacon, False, 80),
    "dns-tunnel": (_dns_tunnel, True, 53),
    "exfiltration": (_exfiltration, False, 443),
    "injection": (_injection, False, 80),
    "ssh-guessing": (_ssh_guessing, False, 22),
}
# What the normal traffic of the target is made of; attacks use the same ports.
TARGET_MIX = {"http": 30, "tls": 30, "dns": 25, "ssh": 10, "imap": 5}


def make_traffic(
    folder: str | os.PathLike[str],
    *,
    n_flows: int = 600,
    n_reference: int = 80,
    n_attacks: int = 40,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Write small labelled captures: a reference, normal traffic of one network, and attacks among such traffic.

    The same arguments give the same bytes. Attacks come from the same hosts as normal flows, with the same TTL and
    about as many packets; they differ in what they say and partly in how much of it.

    Guide: :doc:`/datasets`.

    Parameters
    ----------
    folder : path
        Where to write; made if missing. Captures of the same names are replaced.
    n_flows : int, default=600
        Normal flows for training, and as many more for testing.
    n_reference : int, default=80
        Flows of each of the twelve reference classes.
    n_attacks : int, default=40
        Flows of each of the five kinds of attack.
    random_state : int, RandomState instance or None, default=None
        Source of all that is drawn.

    Returns
    -------
    Bunch
        ``reference`` : list of paths, one capture per class, named after it (``reference/dns.pcap``);
        ``reference_classes`` : list of str; ``train`` : path, normal flows; ``test`` : path, normal flows and
        attacks in order of time; ``attack_of`` : function of a `FlowTable`, returns the kind of attack of each flow
        ("" for normal); ``labels`` : path of a CSV table of the attacks' five-tuples; ``DESCR`` : str.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids.datasets import make_traffic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     traffic = make_traffic(folder, n_flows=20, n_reference=5, n_attacks=2, random_state=0)
    >>> traffic.reference_classes[:3]
    ['dns', 'ftp', 'http']
    """
    # Python's generator, because single numbers and bytes are drawn; its sequence is the same on every platform.
    rng = Random(int(check_random_state(random_state).randint(2**31 - 1)))
    folder = Path(folder)
    (folder / "reference").mkdir(parents=True, exist_ok=True)
    for name, count in (("n_flows", n_flows), ("n_reference", n_reference), ("n_attacks", n_attacks)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    elsewhere, here = _site(rng, "192.0.2", ttl=128), _site(rng, "10.20.0", ttl=64)
    reference = []
    for name in PROTOCOLS:
        reference.append(folder / "reference" / f"{name}.pcap")
        _write(reference[-1], rng, elsewhere, [(PROTOCOLS[name], "")] * n_reference)
    mix = rng.choices(list(TARGET_MIX), list(TARGET_MIX.values()), k=2 * n_flows)
    normal = [(PROTOCOLS[name], "") for name in mix]
    attacks = [(spec, name) for name, spec in ATTACKS.items() for _ in range(n_attacks)]
    _write(folder / "train.pcap", rng, here, normal[:n_flows])
    labels = _write(folder / "test.pcap", rng, here, normal[n_flows:] + attacks)
    _write_labels(folder / "labels.csv", labels)
    return Bunch(
        reference=reference,
        reference_classes=list(PROTOCOLS),
        train=folder / "train.pcap",
        test=folder / "test.pcap",
        labels=folder / "labels.csv",
        attack_of=lambda flows: _attack_of(flows, labels),
        DESCR=__doc__,
    )


FiveTuple = tuple[str, int, str, int, int]


def _attack_of(flows: FlowTable, labels: dict[FiveTuple, str]) -> np.ndarray:
    columns = (flows[name].tolist() for name in ("src_ip", "src_port", "dst_ip", "dst_port", "protocol"))
    return np.array([labels.get(five_tuple, "") for five_tuple in zip(*columns, strict=True)])


def _write_labels(path: Path, labels: dict[FiveTuple, str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("src_ip", "src_port", "dst_ip", "dst_port", "protocol", "attack"))
        table.writerows((*five_tuple, kind) for five_tuple, kind in labels.items() if kind)


def _write(path: Path, rng: Random, site: Site, flows: list[Any]) -> dict[FiveTuple, str]:
    """Write flows at random times of one hour; return the kind of each five-tuple."""
    from scapy.utils import PcapWriter

    labels: dict[FiveTuple, str] = {}
    packets: list[tuple[float, bytes]] = []
    for (dialogue, udp, server_port), kind in flows:
        while True:  # a five-tuple names one flow
            client, server = rng.choice(site.clients), rng.choice(site.servers)
            five_tuple = (client, rng.randint(49152, 65535), server, server_port, 17 if udp else 6)
            if five_tuple not in labels:
                break
        labels[five_tuple] = kind
        turns = dialogue(rng, site)
        sent = _udp_packets(rng, five_tuple, turns, site.ttl) if udp else _tcp_packets(rng, five_tuple, turns, site.ttl)
        time = START_S + rng.uniform(0, SPAN_S)
        for packet in sent:
            packets.append((time, packet))
            time += rng.expovariate(20.0)
    packets.sort(key=lambda packet: packet[0])
    with PcapWriter(str(path), linktype=1) as writer:
        writer.write_header(None)
        for time, packet in packets:
            writer.write_packet(packet, sec=int(time), usec=int(time % 1 * 1e6))
    return labels


def _frames(five_tuple: FiveTuple, ttl: int, transport: Any) -> dict[bool, Any]:
    """Return an empty scapy packet for each direction (key: from the client), to be filled again and again.

    Building packets anew with ``/`` copies every layer and takes most of the time.
    """
    from scapy.layers.inet import IP
    from scapy.layers.l2 import Ether

    client, client_port, server, server_port, _ = five_tuple
    # Servers sit behind a gateway, so their frames carry its address.
    host, gateway = f"02:00:00:00:00:{int(client.rsplit('.', 1)[1]):02x}", "02:00:00:00:00:01"
    return {
        True: Ether(src=host, dst=gateway)
        / IP(src=client, dst=server, ttl=ttl, flags="DF")
        / transport(sport=client_port, dport=server_port),
        False: Ether(src=gateway, dst=host)
        / IP(src=server, dst=client, ttl=ttl, flags="DF")
        / transport(sport=server_port, dport=client_port),
    }


def _udp_packets(rng: Random, five_tuple: FiveTuple, turns: Dialogue, ttl: int) -> Iterator[bytes]:
    from scapy.layers.inet import UDP
    from scapy.packet import Raw

    frames = _frames(five_tuple, ttl, UDP)
    for from_client, data in turns:
        frame = frames[from_client]
        ip = frame.payload
        ip.id = rng.randint(0, 65535)
        ip.payload.remove_payload()
        ip.payload.add_payload(Raw(data))
        yield bytes(frame)


def _tcp_packets(rng: Random, five_tuple: FiveTuple, turns: Dialogue, ttl: int) -> Iterator[bytes]:
    """Yield handshake, dialogue and FINs of one connection."""
    from scapy.layers.inet import TCP
    from scapy.packet import Raw

    frames = _frames(five_tuple, ttl, TCP)
    next_seq = {True: rng.getrandbits(32), False: rng.getrandbits(32)}
    number = {True: rng.randint(0, 65535), False: rng.randint(0, 65535)}
    window = {True: _window(five_tuple[0]), False: _window(five_tuple[2])}
    hello = [("MSS", 1460), ("NOP", None), ("WScale", 8), ("NOP", None), ("NOP", None), ("SAckOK", b"")]
    segments = [(True, "S", b""), (False, "SA", b""), (True, "A", b"")]
    segments += [(from_client, "PA", data) for from_client, data in turns]
    segments += [(True, "FA", b""), (False, "FA", b""), (True, "A", b"")]
    for from_client, flags, data in segments:
        frame = frames[from_client]
        ip, tcp = frame.payload, frame.payload.payload
        ip.id = number[from_client]
        tcp.seq, tcp.ack = next_seq[from_client], 0 if flags == "S" else next_seq[not from_client]
        tcp.flags, tcp.window, tcp.options = flags, window[from_client], hello if "S" in flags else []
        tcp.remove_payload()
        if data:
            tcp.add_payload(Raw(data))
        yield bytes(frame)
        length = len(data) + ("S" in flags or "F" in flags)
        next_seq[from_client] = (next_seq[from_client] + length) % 2**32
        number[from_client] = (number[from_client] + 1) % 2**16
