"""Traffic of a small office, built in code: pages over TCP, names over UDP, and a computer that guesses a password."""

import numpy as np
from captures import pcap, tcp, udp

PAGES = (b"GET /news", b"GET /mail", b"GET /wiki/home", b"POST /upload")
NAMES = (b"\x01\0intranet", b"\x01\0mail", b"\x01\0printer")


def dialogue(number, time, source, rng):
    """Return packets of one flow and their times: a page over TCP, or a name over UDP."""
    port = 10_000 + number
    ends = {"src": source, "dst": "10.0.1.1"}
    back = {"src": "10.0.1.1", "dst": source}
    if number % 2:
        name = NAMES[rng.integers(len(NAMES))]
        packets = [udp(port, 53, name, **ends), udp(53, port, name + b"\x0a\0\x01\x02", **back)]
    else:
        page = PAGES[rng.integers(len(PAGES))] + b" HTTP/1.1\r\n\r\n"
        packets = [
            tcp(port, 80, "S", **ends),
            tcp(80, port, "SA", **back),
            tcp(port, 80, "PA", page, **ends),
            tcp(80, port, "PA", b"HTTP/1.1 200 OK" + b"x" * int(rng.integers(200)), **back),
            tcp(80, port, "FA", **back),
        ]
    return packets, [time + 0.01 * place for place in range(len(packets))]


def capture_of(dialogues):
    packets = [packet for packets, _ in dialogues for packet in packets]
    times = [time for _, times in dialogues for time in times]
    order = np.argsort(times, kind="stable")
    return pcap([packets[place] for place in order], times=[times[place] for place in order])


def office(n_flows, seed, first=0):
    """Return dialogues of four computers in ten minutes."""
    rng = np.random.default_rng(seed)
    times = 1000 + np.sort(rng.uniform(0, 600, n_flows))
    return [dialogue(first + i, times[i], f"10.0.0.{rng.integers(1, 5)}", rng) for i in range(n_flows)]


def burst(n_flows, time):
    """Return dialogues of one computer that guesses a password, ten in a second."""
    return [
        (
            [
                tcp(30_000 + i, 80, "S", src="10.0.0.1", dst="10.0.1.1"),
                tcp(30_000 + i, 80, "PA", b"POST /login?~~%%", src="10.0.0.1", dst="10.0.1.1"),
            ],
            [time + 0.1 * i, time + 0.1 * i + 0.01],
        )
        for i in range(n_flows)
    ]
