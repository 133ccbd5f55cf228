# SPDX-License-Identifier: BSD-3-Clause
"""A working day of one host of the office, compressed: run inside the host's namespace until a given time.

Each host has a role: how often it does what, and with which server. Work comes in spells, and beside the people there
are machines that report and ask on a clock, as beacons of malware do.
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import threading
import time
from pathlib import Path

from clients import CURL, SESSIONS, Session
from services import WORDS

SERVERS = {
    "intranet": "intranet.office.example",
    "ssh": "files.office.example",
    "ftp": "files.office.example",
    "smb": "files.office.example",
    "smtp": "mail.office.example",
    "imap": "mail.office.example",
    "ldap": "mail.office.example",
    "ntp": "mail.office.example",
    "syslog": "mail.office.example",
    "mysql": "db.office.example",
    "postgresql": "db.office.example",
    "redis": "db.office.example",
    "mqtt": "db.office.example",
    "snmp": "db.office.example",
}
# How often a role does what, relative to its other activities.
ROLES = {
    "clerk": {"https": 26, "http": 16, "intranet": 16, "imap": 14, "smtp": 6, "smb": 10, "ldap": 3, "dns": 3, "ftp": 6,
              "printer": 1, "ssh": 2},
    "developer": {"https": 24, "http": 12, "intranet": 6, "imap": 8, "smtp": 3, "smb": 4, "ssh": 14, "mysql": 8,
                  "postgresql": 10, "redis": 6, "dns": 5, "ftp": 4},
    "administrator": {"https": 16, "http": 10, "intranet": 8, "imap": 8, "smtp": 3, "ssh": 18, "snmp": 10, "ldap": 4,
                      "dns": 9, "ftp": 8, "postgresql": 3, "printer": 2},
    "server": {"mysql": 4, "redis": 8, "postgresql": 3, "dns": 8, "ntp": 2, "syslog": 8, "http": 3, "smtp": 3},
}  # fmt: skip
PAUSE_S = {"clerk": 1.7, "developer": 1.7, "administrator": 1.7, "server": 2.5}
# Spells of work: seconds from one busiest moment to the next.
SPELL_S = 70.0


def activity(kind: str, rng: random.Random, names: list[str], resolver: str) -> Session:
    """Return a session of one kind, with a server that fits it."""
    if kind == "printer":  # it was switched off: nothing answers for a closed port but the host's refusal
        return [[*CURL, "-m", "2", "http://files.office.example:631/printers"]]
    if kind == "dns":
        return SESSIONS["dns"](rng, resolver)
    server = SERVERS.get(kind) or rng.choice(names)
    return SESSIONS[kind](rng, server)


def perform(session: Session) -> None:
    """Run the commands of a session; typing errors and refusals are part of the day."""
    for command in session:
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=40, check=False, cwd="/mnt")
        except subprocess.TimeoutExpired:
            print(f"{time.time():.1f} ended after 40 s: {command}", flush=True)


def person(role: str, rng: random.Random, names: list[str], resolver: str, end: float) -> None:
    """Do one thing after the other until the day ends."""
    kinds, weights = zip(*ROLES[role].items(), strict=True)
    phase = rng.uniform(0, 2 * math.pi)
    while True:
        busy = 1 + 0.6 * math.sin(2 * math.pi * time.time() / SPELL_S + phase)
        time.sleep(rng.lognormvariate(math.log(PAUSE_S[role]), 0.7) / busy)
        if time.time() > end:
            return
        perform(activity(rng.choices(kinds, weights)[0], rng, names, resolver))


def clockwork(command: Session, rng: random.Random, seconds: float, end: float) -> None:
    """Repeat commands at an almost steady pace until the day ends."""
    time.sleep(rng.uniform(0, seconds))
    while time.time() < end:
        perform(command)
        time.sleep(seconds * rng.uniform(0.95, 1.05))


def main() -> None:
    """Run the people and the machines of one host."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("host", "role", "resolver", "names"):
        parser.add_argument(name)
    parser.add_argument("seed", type=int)
    parser.add_argument("end", type=float)
    options = parser.parse_args()
    names = Path(options.names).read_text().split()
    rng = random.Random(f"{options.seed} {options.host}")
    updates = rng.choice(names)
    machines = [
        ([[*CURL, "-A", "office-updater/2.4", f"http://{updates}/api/update?host={options.host}"]], 11.0),
        ([[*CURL, "-A", "office-updater/2.4", f"https://{updates}/api/inventory"]], 17.0),
        (SESSIONS["ntp"](rng, SERVERS["ntp"]), 23.0),
        (SESSIONS["mqtt"](rng, SERVERS["mqtt"]), 13.0),
        ([["logger", "-n", SERVERS["syslog"], "-P", "514", "-d", "-t", "cron", rng.choice(WORDS)]], 9.0),
    ]
    n_people = 1 if options.role == "server" else 2
    threads = [
        threading.Thread(
            target=person, args=(options.role, random.Random(rng.random()), names, options.resolver, options.end)
        )
        for _ in range(n_people)
    ] + [
        threading.Thread(target=clockwork, args=(command, random.Random(rng.random()), seconds, options.end))
        for command, seconds in machines
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
