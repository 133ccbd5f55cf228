# SPDX-License-Identifier: BSD-3-Clause
"""What people and machines do with the servers: sessions of real client programs, drawn at random.

A session is a list of commands, run one after the other. The same sessions make the reference, one service at a time,
and the normal traffic of the office, where `office.py` mixes them.
"""

from __future__ import annotations

import base64
import random
import shlex
from collections.abc import Callable
from pathlib import Path

from services import ACCOUNTS, POSTGRES, WORDS, sentence

Session = list[list[str]]

AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "office-updater/2.4",
)
CURL = ["curl", "-s", "-k", "-m", "20", "-o", "/dev/null"]
WGET = ["wget", "-q", "-t", "1", "-T", "20", "-O", "-", "--no-check-certificate"]
SSH = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]


# Sections end with an empty line.
MBSYNC = """IMAPAccount a
Host {server}
User {name}
Pass "{password}"
SSLType None
AuthMechs LOGIN

IMAPStore far
Account a

MaildirStore near
Path ./
Inbox ./INBOX

Channel c
Far :far:
Near :near:
Pattern INBOX
Create Near
SyncState *
"""


def shell(text: str) -> list[str]:
    """Return a command that a shell runs."""
    return ["sh", "-c", text]


def in_folder(text: str) -> list[str]:
    """Return a command that a shell runs in a folder of its own, removed behind it.

    Not everything that fetches a file may be given /dev/null to write to: rsync puts a file in its place.
    """
    return shell(f"d=$(mktemp -d) && cd $d && {{ {text}; }}; cd / && rm -rf $d")


def account(rng: random.Random) -> tuple[str, str]:
    """Return a name and its password."""
    name = rng.choice(sorted(ACCOUNTS))
    return name, ACCOUNTS[name]


def web_path(rng: random.Random) -> str:
    """Return the path of a page, a search or an interface."""
    return rng.choice([
        f"f{rng.randrange(60)}.html",
        f"f{rng.randrange(60)}.html?ref={rng.choice(WORDS)}",
        f"search?q={rng.choice(WORDS)}+{rng.choice(WORDS)}",
        f"search?q=o%27{rng.choice(WORDS)}+%3C{rng.randrange(100)}",
        f"api/{rng.choice(WORDS)}/{rng.randrange(1000)}",
        "",
    ])  # fmt: skip


def fetch(rng: random.Random, scheme: str, server: str) -> list[str]:
    """Return a command that fetches one to three pages over one connection, or one with wget."""
    if rng.random() < 0.3:
        return [*WGET, f"{scheme}://{server}/{web_path(rng)}"]
    urls: list[str] = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        urls += ["-o", "/dev/null", f"{scheme}://{server}/{web_path(rng)}"]
    version = ["--http1.1"] if scheme == "http" or rng.random() < 0.5 else ["--http2"]
    cookie = ["-b", f"session={cookie_value(rng)}"] if rng.random() < 0.4 else []
    return ["curl", "-s", "-k", "-m", "20", "-A", rng.choice(AGENTS), *cookie, *version, *urls]


def http(rng: random.Random, server: str) -> Session:
    """Pages, searches, answers in JSON, and now and then an upload."""
    if rng.random() < 0.1:
        size = rng.choice([500, 20_000, 300_000])
        return [
            shell(f"head -c {size} /dev/urandom | {shlex.join(CURL)} -T - http://{server}/upload/{rng.choice(WORDS)}")
        ]
    return [fetch(rng, "http", server)]


def https(rng: random.Random, server: str) -> Session:
    """The same over TLS, by two libraries."""
    if rng.random() < 0.1:
        size = rng.choice([500, 20_000, 300_000])
        return [
            shell(f"head -c {size} /dev/urandom | {shlex.join(CURL)} -T - https://{server}/upload/{rng.choice(WORDS)}")
        ]
    return [fetch(rng, "https", server)]


def intranet_page(rng: random.Random) -> str:
    """Return the path of a page of the intranet, sometimes with a question."""
    question = rng.choice(
        ["", "", f"?ref={rng.choice(WORDS)}", f"?id={rng.randrange(10**6)}", f"?p={rng.randrange(100)}"]
    )
    return f"f{rng.randrange(40)}.html{question}"


def cookie_value(rng: random.Random) -> str:
    """Return what a server would put into a cookie."""
    return base64.b64encode(rng.randbytes(rng.choice([12, 18, 24, 30]))).decode()


def intranet(rng: random.Random, server: str) -> Session:
    """Log in, sometimes with a typing error first, then read pages."""
    name, password = account(rng)
    agent = rng.choice(AGENTS[:2])
    steps = []
    for typed in [password[:-1]] * (rng.random() < 0.2) + [password]:
        form = ["--data-urlencode", f"user={name}", "--data-urlencode", f"password={typed}"]
        steps.append([*CURL, "-A", agent, *form, f"http://{server}/login"])
    return steps + [[*CURL, "-A", agent, f"http://{server}/{intranet_page(rng)}"] for _ in range(2)]


def dns(rng: random.Random, server: str) -> Session:
    """Lookups of all common kinds."""
    name = f"{rng.choice(WORDS)}{rng.choice(['', '-', '.'])}{rng.choice(WORDS)}.example"
    return [rng.choice([
        ["dig", f"@{server}", name, rng.choice(["A", "A", "AAAA", "MX", "NS", "SOA"])],
        ["dig", f"@{server}", "+tcp", name],
        ["dig", f"@{server}", f"sel{rng.randrange(30)}._domainkey.example", "TXT"],
        ["dig", f"@{server}", f"{rng.randbytes(16).hex()}.edge.example"],
        ["dig", f"@{server}", "+noedns", f"{rng.choice(['files', 'mail', 'db', 'www'])}.office.example"],
        ["dig", f"@{server}", "_ldap._tcp.office.example", "SRV"],
        ["host", name, server],
        ["nslookup", name, server],
    ])]  # fmt: skip


def ssh(rng: random.Random, server: str) -> Session:
    """Commands on a server, copies of files, a typing error now and then."""
    name, password = account(rng)
    typed = password[1:] if rng.random() < 0.05 else password
    login = ["sshpass", "-p", typed]
    options = [*SSH, "-o", "NumberOfPasswordPrompts=1"]
    return [rng.choice([
        [*login, "ssh", *options, f"{name}@{server}", rng.choice(["uptime", "ls -l", "cat f1.txt", "df"])],
        in_folder(shlex.join([*login, "scp", *options, f"{name}@{server}:f{rng.randrange(12)}.txt", "."])),
        in_folder(shlex.join([*login, "sftp", *options, f"{name}@{server}:f{rng.randrange(12)}.txt", "."])),
    ])]  # fmt: skip


def ftp(rng: random.Random, server: str) -> Session:
    """List, fetch and store files."""
    name, password = account(rng)
    typed = password[1:] if rng.random() < 0.05 else password
    login = ["-u", f"{name}:{typed}"]
    store = f"head -c {rng.choice([800, 30_000, 200_000])} /dev/urandom"
    return [rng.choice([
        [*CURL, *login, f"ftp://{server}/"],
        [*CURL, *login, f"ftp://{server}/f{rng.randrange(12)}.txt"],
        shell(f"{store} | {shlex.join([*CURL, *login])} -T - ftp://{server}/up{rng.randrange(20)}.bin"),
        ["lftp", "-c", f"set net:timeout 10; set net:max-retries 1; open -u {shlex.quote(name)},{shlex.quote(typed)} "
                       f"{server}; ls; cat f{rng.randrange(12)}.txt; bye"],
    ])]  # fmt: skip


def smtp(rng: random.Random, server: str) -> Session:
    """Send a mail."""
    sender, receiver = account(rng)[0] + "@office.example", account(rng)[0] + "@office.example"
    body = sentence(rng, int(10 ** rng.uniform(1, 3.5)))
    if rng.random() < 0.5:
        return [["swaks", "--server", server, "--from", sender, "--to", receiver, "--silent", "3", "--body", body]]
    text = shlex.quote(f"From: {sender}\nTo: {receiver}\nSubject: {sentence(rng, 4)}\n\n{body}\n")
    sending = [*CURL, "--mail-from", sender, "--mail-rcpt", receiver, f"smtp://{server}/pc.office.example"]
    return [shell(f"printf %s {text} | {shlex.join(sending)} -T -")]


def imap(rng: random.Random, server: str) -> Session:
    """Look for new mail, read, search."""
    name, password = account(rng)
    login = ["-u", f"{name}:{password}"]
    settings = MBSYNC.format(server=server, name=name, password=password)
    return [rng.choice([
        [*CURL, *login, f"imap://{server}/INBOX", "-X", rng.choice(["NOOP", "EXAMINE INBOX", "STATUS INBOX (UNSEEN)"])],
        [*CURL, *login, f"imap://{server}/INBOX;MAILINDEX={rng.randrange(1, 15)}"],
        [*CURL, *login, f"imap://{server}/INBOX?SUBJECT%20{rng.choice(WORDS)}"],
        in_folder(f"printf %s {shlex.quote(settings)} > rc; mbsync -q -c rc c"),
    ])]  # fmt: skip


def mysql(rng: random.Random, server: str) -> Session:
    """Queries and changes."""
    statement = rng.choice([
        f"select * from orders where id = {rng.randrange(400)}",
        f"select count(*), avg(price) from orders where item like '%{rng.choice(WORDS)}%'",
        f"insert into orders (item, price) values ('{sentence(rng, 3)}', {rng.randrange(9999)})",
        f"update orders set price = {rng.randrange(9999)} where id = {rng.randrange(400)}",
        f"select item, price from orders order by price desc limit {rng.randrange(5, 200)}",
    ])  # fmt: skip
    return [["mariadb", "--no-defaults", "-h", server, "-u", "app", "-papp-secret", "shop", "-e", statement]]


def postgresql(rng: random.Random, server: str) -> Session:
    """Queries, and transactions of pgbench."""
    login = f"host={server} user=app password=app-secret dbname=postgres"
    statement = rng.choice([
        f"select * from pgbench_accounts where aid = {rng.randrange(100_000)}",
        f"select count(*) from pgbench_accounts where abalance > {rng.randrange(10)}",
        f"update pgbench_accounts set abalance = abalance + 1 where aid = {rng.randrange(100_000)}",
        f"select aid, abalance from pgbench_accounts order by aid limit {rng.randrange(5, 300)}",
    ])  # fmt: skip
    if rng.random() < 0.2:
        return [[str(POSTGRES / "pgbench"), "-n", "-S", "-c", "1", "-t", str(rng.randrange(1, 6)), login]]
    return [["psql", "-q", login, "-c", statement]]


def redis(rng: random.Random, server: str) -> Session:
    """Keys, lists and counters."""
    key = f"{rng.choice(WORDS)}:{rng.randrange(500)}"
    command = rng.choice([
        ["set", key, sentence(rng, rng.randrange(1, 60))],
        ["get", key],
        ["incr", f"count:{rng.choice(WORDS)}"],
        ["lpush", f"queue:{rng.choice(WORDS)}", sentence(rng, 8)],
        ["lrange", f"queue:{rng.choice(WORDS)}", "0", "-1"],
        ["info"],
    ])  # fmt: skip
    return [["redis-cli", "-h", server, *command]]


def mqtt(rng: random.Random, server: str) -> Session:
    """A sensor's value is published or read."""
    topic = f"house/{rng.choice(WORDS)}/{rng.choice(['temperature', 'humidity', 'door'])}"
    value = f'{{"value": {rng.uniform(0, 40):.2f}, "unit": "C"}}'
    quality = str(rng.randrange(2))
    if rng.random() < 0.7:
        return [["mosquitto_pub", "-h", server, "-t", topic, "-m", value, "-q", quality, "-r"]]
    return [["mosquitto_sub", "-h", server, "-t", "house/#", "-C", "1", "-W", "2", "-q", quality]]


def smb(rng: random.Random, server: str) -> Session:
    """List, fetch and store files of the share."""
    name, password = account(rng)
    file = f"f{rng.randrange(30)}.txt"
    command = rng.choice(["ls", f"get {file}", f"get {file}; ls", f"put /etc/services up-{file}"])
    return [
        in_folder(shlex.join(["smbclient", f"//{server}/data", "-U", f"{name}%{password}", "-p", "445", "-c", command]))
    ]


def ntp(rng: random.Random, server: str) -> Session:
    """Ask for the time; the clock is left alone."""
    if rng.random() < 0.7:
        return [["ntpdig", server]]
    return [["chronyd", "-Q", "-t", "3", "-u", "root", "-f", "/dev/null", f"server {server} iburst maxsamples 1"]]


def syslog(rng: random.Random, server: str) -> Session:
    """Messages over UDP, sometimes TCP."""
    transport = "-T" if rng.random() < 0.25 else "-d"
    tag = rng.choice(["kernel", "cron", "sshd", "backup", "dhclient"])
    level = rng.choice(["daemon.info", "auth.notice", "cron.info", "kern.warning"])
    return [
        ["logger", "-n", server, "-P", "514", transport, "-t", tag, "-p", level, sentence(rng, rng.randrange(3, 25))]
    ]


def bittorrent(rng: random.Random, server: str) -> Session:
    """Fetch a file from the peers that the tracker names."""
    torrent = Path("/mnt/hosts/bittorrent", f"archive{rng.randrange(8)}.torrent")
    options = "--enable-dht=false --bt-enable-lpd=false --seed-time=0 --disable-ipv6=true --bt-stop-timeout=10"
    return [in_folder(f"timeout 20 aria2c -q {options} --listen-port={rng.randrange(7000, 9000)} --dir=. {torrent}")]


def ldap(rng: random.Random, server: str) -> Session:
    """Look somebody up, with or without a login."""
    search = ["ldapsearch", "-x", "-LLL", "-H", f"ldap://{server}", "-b", "dc=office,dc=example"]
    name, password = account(rng)
    if rng.random() < 0.4:
        search += ["-D", f"cn={name},dc=office,dc=example", "-w", password]
    return [
        [*search, rng.choice([f"(cn={name})", f"(mail={name}*)", "(objectClass=inetOrgPerson)", f"(sn={name[:3]}*)"])]
    ]


def snmp(rng: random.Random, server: str) -> Session:
    """Read values of the agent."""
    version = ["-v", rng.choice(["1", "2c"]), "-c", "public", "-r", "1", "-t", "2", server]
    value = rng.choice(["1.3.6.1.2.1.1.3.0", "1.3.6.1.2.1.1.1.0", "1.3.6.1.2.1.2.2.1.10.1", "1.3.6.1.2.1.1.6.0"])
    return [
        rng.choice(
            [["snmpget", *version, value], ["snmpget", *version, value], ["snmpwalk", *version, "1.3.6.1.2.1.1"]]
        )
    ]


def memcached(rng: random.Random, server: str) -> Session:
    """Store and fetch values."""
    key = f"{rng.choice(WORDS)}{rng.randrange(50)}"
    value = shlex.quote(sentence(rng, rng.randrange(2, 80)))
    return [rng.choice([
        in_folder(f"printf %s {value} > {key}; memccp --servers={server} {key}"),
        ["memccat", f"--servers={server}", key],
        ["memcstat", f"--servers={server}"],
        ["memcexist", f"--servers={server}", key],
    ])]  # fmt: skip


def rsync(rng: random.Random, server: str) -> Session:
    """Fetch, list or store files."""
    file = f"f{rng.randrange(40)}.txt"
    return [rng.choice([
        ["rsync", f"rsync://{server}/data/"],
        in_folder(f"rsync rsync://{server}/data/{file} ."),
        in_folder(f"rsync -a rsync://{server}/data/{file} ."),
        ["rsync", "/etc/services", f"rsync://{server}/incoming/{file}"],
    ])]  # fmt: skip


def git(rng: random.Random, server: str) -> Session:
    """Ask for branches, or clone."""
    url = f"git://{server}/r{rng.randrange(4)}"
    if rng.random() < 0.6:
        return [["git", "ls-remote", "-q", url]]
    depth = rng.choice(["", "--depth 1 "])
    return [in_folder(f"git clone -q {depth}{url} r")]


def tftp(rng: random.Random, server: str) -> Session:
    """Fetch a small file."""
    file = f"f{rng.randrange(20)}.txt"
    return [rng.choice([[*CURL, f"tftp://{server}/{file}"], in_folder(f"tftp -m binary {server} -c get {file}")])]


SESSIONS: dict[str, Callable[[random.Random, str], Session]] = {
    function.__name__: function
    for function in (
        http, https, intranet, dns, ssh, ftp, smtp, imap, mysql, postgresql, redis, mqtt, smb, ntp, syslog, bittorrent,
        ldap, snmp, memcached, rsync, git, tftp,
    )
}  # fmt: skip
# What these sessions need to be installed.
PROGRAMS = (
    "aria2c chronyd curl dig git host ldapsearch lftp logger mariadb mbsync memccat memccp memcexist memcstat "
    "mosquitto_pub mosquitto_sub nslookup ntpdig psql redis-cli rsync scp sftp smbclient snmpget snmpwalk ssh sshpass "
    "swaks tftp wget"
).split()
