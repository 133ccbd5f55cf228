# SPDX-License-Identifier: BSD-3-Clause
"""Build the testbed's captures: the labelled reference, and the office in three periods with the truth about them.

    sudo python -B testbed/build.py FOLDER

Everything runs in namespaces of its own (`network.py`); nothing of it is left when the program ends.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import abnormal
import clients
import network
import pack
import services

HERE = Path(__file__).parent
HOSTS = Path("/mnt/hosts")
# Sessions per class of the reference; each makes at least one flow, those named make more or cost more.
SESSIONS = 250
FEWER_SESSIONS = {"bittorrent": 110, "ftp": 150, "intranet": 90, "tftp": 150}
CLIENTS = 4
SERVERS_OF_OFFICE = {
    "files": (2, ["ssh", "ftp", "smb"]),
    "intranet": (3, ["intranet"]),
    "mail": (4, ["dns", "smtp", "imap", "ntp", "syslog", "ldap"]),
    "db": (5, ["mysql", "postgresql", "redis", "mqtt", "snmp"]),
    "outside": (200, ["http"]),
}
PEOPLE = {"pc1": "clerk", "pc2": "clerk", "pc3": "clerk", "pc4": "developer", "pc5": "administrator"}
MACHINES = ("mail", "db", "files")  # servers that do something by themselves
# Seconds of normal traffic alone, and of normal and abnormal traffic beside one another.
PERIODS = {"train": (260, 0), "validation": (50, 200), "test": (70, 230)}
# Flows of each kind, tempo and computer.
FLOWS_PER_HOST = 13
# Everything takes 20 minutes; what takes so long hangs.
MOST_SECONDS = 3600


def build_reference(folder: Path, seed: int) -> None:
    """Capture each service by itself, used by four clients."""
    folder.mkdir(parents=True)
    for kind in clients.SESSIONS:
        switch = network.Switch("lab", "192.168.88.0/24", HOSTS)
        server_name = "http" if kind == "https" else kind
        server = switch.add(server_name, 10)
        services.SERVICES[server_name](server)
        users = [switch.add(f"client{number}", 20 + number) for number in range(CLIENTS)]
        capture = switch.capture(folder / f"{kind}.pcap")
        failures: Counter[str] = Counter()
        n_each = -(-FEWER_SESSIONS.get(kind, SESSIONS) // CLIENTS)
        threads = [
            threading.Thread(
                target=use,
                args=(user, kind, server.address, n_each, f"{seed} {kind} {user.name}", failures),
                daemon=True,
            )
            for user in users
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        network.end_capture(capture, folder / f"{kind}.pcap")
        switch.remove()
        report(f"reference {kind}: {(folder / f'{kind}.pcap').stat().st_size:,} bytes, failures: {dict(failures)}")


def use(user: network.Host, kind: str, address: str, n_sessions: int, seed: str, failures: Counter[str]) -> None:
    """Let one client have so many sessions; count the programs that failed, for somebody to look at."""
    rng = random.Random(seed)
    for _ in range(n_sessions):
        for command in clients.SESSIONS[kind](rng, address):
            try:
                done = subprocess.run(
                    ["ip", "netns", "exec", user.name, *command], stdin=subprocess.DEVNULL, capture_output=True,
                    timeout=60, check=False, cwd="/mnt",
                )  # fmt: skip
                failed = f"{command[0]}: {done.returncode}" if done.returncode else None
            except subprocess.TimeoutExpired:
                failed = f"{command[0]}: ended after 60 s"
            if failed:
                failures[failed] += 1
        time.sleep(rng.expovariate(20))


def build_office(folder: Path, seed: int) -> None:
    """Capture the office, one period after the other."""
    folder.mkdir(parents=True)
    office = network.Switch("office", "10.77.0.0/24", HOSTS)
    for name, (number, running) in SERVERS_OF_OFFICE.items():
        host = office.add(name, number)
        for service in running:
            services.SERVICES[service](host)
    for number, name in enumerate(PEOPLE):
        office.add(name, 11 + number)
    resolver = office.hosts["mail"]
    for name in office.hosts:
        settings = Path("/etc/netns", name)
        settings.mkdir(parents=True)
        (settings / "resolv.conf").write_text(f"nameserver {resolver.address}\n")
    # Started behind resolv.conf, which a namespace sees from its first program on.
    office.hosts["outside"].start(
        [sys.executable, str(HERE / "abnormal.py"), "listen", office.hosts["outside"].address]
    )
    for number, period in enumerate(PERIODS):
        run_period(office, folder, period, 1000 * seed + number)
    office.remove()


def run_period(office: network.Switch, folder: Path, period: str, seed: int) -> None:
    """Let the office work for a period; abnormal traffic begins when its first part is over."""
    alone, together = PERIODS[period]
    begin = time.time() + alone
    end = begin + together
    path = folder / f"{period}.pcap"
    names = str(office.hosts["mail"].folder / "names.txt")
    resolver = office.hosts["mail"].address
    capture = office.capture(path)
    at_work = []
    for name, role in {**PEOPLE, **dict.fromkeys(MACHINES, "server")}.items():
        day = [sys.executable, str(HERE / "office.py"), name, role, resolver, names, str(seed), str(end)]
        at_work.append(office.hosts[name].start(day))
    time.sleep(max(0.0, begin - time.time()))
    if together:
        at_work += start_abnormal(office, folder / f"{period}.csv", names, together, seed)
    for process in at_work:
        if process.wait(timeout=max(1.0, end + 150 - time.time())):
            raise RuntimeError(f"{process.args} failed, see {office.folder}")
    network.end_capture(capture, path)
    report(f"office {period}: {path.stat().st_size:,} bytes")


def start_abnormal(
    office: network.Switch, truth: Path, names: str, seconds: float, seed: int
) -> list[subprocess.Popen[bytes]]:
    """Start every kind in both tempi on every computer, quick ones at a moment of their own."""
    truth.write_text(",".join(abnormal.COLUMNS) + "\n")
    rng = random.Random(seed)
    addresses = [f"--address={name}={host.address}" for name, host in office.hosts.items()]
    started = []
    for kind, host, tempo in itertools.product(abnormal.KINDS, PEOPLE, ("quick", "slow")):
        wait = rng.uniform(0, 0.8 * seconds) if tempo == "quick" else rng.uniform(0, 5)
        act = [sys.executable, str(HERE / "abnormal.py"), kind, tempo, host, f"--truth={truth}"]
        act += [f"--names={names}", f"--seed={seed}", f"--n={FLOWS_PER_HOST}", *addresses]
        started.append(office.hosts[host].start(["sh", "-c", f'sleep {wait:.1f}; exec "$@"', "sh", *act]))
    return started


def give_up(number: int, frame: object) -> None:
    """End a build that hangs, and with it all its programs.

    Raises
    ------
    TimeoutError
        Always.
    """
    raise TimeoutError(f"the testbed is not done after {MOST_SECONDS} s")


def report(line: str) -> None:
    """Say what is done, and when."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def main() -> None:
    """Build into an empty folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("reference", "office"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if any(options.folder.iterdir()):
        parser.error(f"{options.folder} is not empty")
    network.seal(options.folder)
    network.check_programs([*clients.PROGRAMS, *services.PROGRAMS])
    signal.signal(
        signal.SIGALRM, give_up
    )  # the first program of a process namespace is deaf to what it does not handle
    signal.alarm(MOST_SECONDS)
    services.add_accounts()
    if options.only != "office":
        build_reference(network.OUTPUT / "reference", options.seed)
    if options.only != "reference":
        build_office(network.OUTPUT / "office", options.seed)
    pack.pack_all(network.OUTPUT, network.OUTPUT / "packed")


if __name__ == "__main__":
    main()
