# SPDX-License-Identifier: BSD-3-Clause
"""Servers of the testbed: unmodified programs from Debian packages, each started by one function.

A function takes the host to serve on, writes a configuration into its folder and returns once the port is open. What
the servers hold (pages, mails, tables, files) is made from a seed.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from network import Host, run_in

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1] if Path("/usr/lib/postgresql").exists() else Path()
# Accounts of the people of the testbed, on every server that asks for one.
ACCOUNTS = {
    "anna": "Morgenrot-17",
    "ben": "kaffee&kuchen",
    "clara": "TrustNo1.clara",
    "dora": "9lives4dora",
    "emil": "detektiv_1929",
}
WORDS = (
    "account agenda archive asset balance batch board book branch budget build calendar cargo chart client cloud "
    "contract course credit customer data delivery demand desk draft edge event export factory field file final "
    "forecast gate guide holiday import index input invoice item journal key label ledger letter level line link list "
    "log market media meeting member memo menu merge model module month network news note notice number offer office "
    "order outlook page panel paper part patch payment pension phone plan plant point policy press price print "
    "process product profile project protocol purchase quality quarter query queue quote rate record region release "
    "report request research result review risk role room route sale sample schedule scope screen script section "
    "sector sensor series server service shift ship shop site sketch source staff stage status stock storage street "
    "style summary supply support survey system table target task team template term test ticket title tool topic "
    "trade training travel trend unit update user value vendor version view visit volume wage week window workflow "
    "yield zone"
).split()
TUNNEL_ZONE = "t.sync-cdn.example"


def add_accounts() -> None:
    """Make the accounts, in the sealed /etc and /home."""
    for name, password in ACCOUNTS.items():
        run_in(None, ["useradd", "--create-home", "--shell", "/bin/bash", name])
        run_in(None, ["sh", "-c", f"echo '{name}:{password}' | chpasswd"])
        fill(Path("/home", name), random.Random(name), 12)
        run_in(None, ["chown", "-R", f"{name}:", f"/home/{name}"])


def sentence(rng: random.Random, n_words: int) -> str:
    """Return words."""
    return " ".join(rng.choice(WORDS) for _ in range(n_words))


def fill(folder: Path, rng: random.Random, n_files: int, suffix: str = ".txt") -> None:
    """Write text files of 100 bytes to 30 kB, named f0, f1, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n_files):
        text = sentence(rng, int(10 ** rng.uniform(1.2, 3.7)))
        (folder / f"f{number}{suffix}").write_text(text)


def http(host: Host) -> None:
    """Nginx over plain HTTP, and over TLS with a certificate of its own: static pages, answers in JSON, uploads."""
    site = host.folder / "site"
    fill(site, random.Random("http"), 60, ".html")
    run_in(None, [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
        "-subj", "/CN=www.example", "-keyout", str(host.folder / "key.pem"), "-out", str(host.folder / "cert.pem"),
    ])  # fmt: skip
    uploads = host.folder / "uploads"
    uploads.mkdir()
    uploads.chmod(0o777)
    host.folder.chmod(0o755)
    configuration = f"""
        user www-data; pid {host.folder}/nginx.pid; worker_processes 1; error_log {host.folder}/nginx-error.log;
        events {{ worker_connections 512; }}
        http {{
            access_log off; types {{ text/html html; }} client_body_temp_path {uploads}; client_max_body_size 50m;
            server {{
                listen 80; listen 443 ssl;
                ssl_certificate {host.folder}/cert.pem; ssl_certificate_key {host.folder}/key.pem;
                root {site};
                location /api/ {{ default_type application/json; return 200 '{{"status": "ok", "next": 60}}'; }}
                location /search {{ default_type text/html; return 200 '<p>results</p>'; }}
                location /upload/ {{ proxy_pass http://127.0.0.1:81; }}
            }}
            server {{ listen 127.0.0.1:81; location / {{ return 201; }} }}
        }}"""
    host.serve(["nginx", "-g", "daemon off;", "-c", str(host.write("nginx.conf", configuration))], 443)


def intranet(host: Host) -> None:
    """Apache with pages and a login form: a CGI program that answers 303 to the right password, 401 to others."""
    fill(host.folder / "pages", random.Random("intranet"), 40, ".html")
    accounts = "\n".join(f"'{name}:{password}') echo 'Status: 303'; echo 'Location: /f0.html'; echo;;"
                         for name, password in ACCOUNTS.items())  # fmt: skip
    login = host.write(
        "cgi/login",
        "#!/bin/sh\nread -r body; user=${body#user=}; user=${user%%&*}; password=${body##*password=}\n"
        f'case "$user:$password" in\n{accounts}\n'
        "*) echo 'Status: 401'; echo 'Content-Type: text/html'; echo; echo '<p>wrong name or password</p>';; esac\n",
    )
    login.chmod(0o755)
    modules = "/usr/lib/apache2/modules"
    loaded = ("mpm_event", "authz_core", "dir", "mime", "cgid", "alias", "reqtimeout")
    configuration = (
        "\n".join(f"LoadModule {name}_module {modules}/mod_{name}.so" for name in loaded)
        + f"""
        ServerRoot {host.folder}
        ServerName intranet.office.example
        User www-data
        Group www-data
        Listen 80
        PidFile {host.folder}/apache.pid
        ErrorLog {host.folder}/apache-error.log
        ScriptSock {host.folder}/cgisock
        MaxRequestWorkers 400
        ServerLimit 16
        ThreadsPerChild 25
        RequestReadTimeout header=120 body=120
        DocumentRoot {host.folder}/pages
        ScriptAlias /login {login}
        TypesConfig /etc/mime.types
        AddType text/html .html
        """
    )
    host.folder.chmod(0o777)
    host.serve(["apache2", "-D", "FOREGROUND", "-f", str(host.write("apache.conf", configuration))], 80)


def dns(host: Host) -> None:
    """BIND, the authority for the zones of the office and of an outside world, all of whose names lead to one host."""
    rng = random.Random("dns")
    outside = ".".join([*host.address.split(".")[:3], "200"])
    names = sorted({f"{rng.choice(WORDS)}{rng.choice(['', '-', '.'])}{rng.choice(WORDS)}" for _ in range(300)})
    head = "$TTL 300\n@ SOA ns.office.example. admin.office.example. 1 3600 600 86400 300\n NS ns.office.example.\n"
    prefix = host.address.rpartition(".")[0]
    servers = {"files": 2, "intranet": 3, "mail": 4, "ns": 4, "db": 5}
    office = head + "".join(f"{name} A {prefix}.{number}\n" for name, number in servers.items())
    office += f'@ MX 10 mail\n@ TXT "v=spf1 ip4:{prefix}.4 -all"\n_ldap._tcp SRV 0 5 389 files\n'
    world = head.replace("ns.office", "ns") + f"ns A {host.address}\n"
    world += "".join(f"{name} A {outside}\n" for name in names)
    world += "".join(f"{name} MX 10 mx.{name}\n" for name in names[::5])
    world += "".join(f'sel{i}._domainkey TXT "v=DKIM1; p={rng.randbytes(90).hex()}"\n' for i in range(20))
    world += "".join(f"{rng.randbytes(16).hex()}.edge CNAME {name}\n" for name in names[::4])
    # Answers of the tunnel's far end, had they been computed there, would look like these.
    world += f'*.{TUNNEL_ZONE.removesuffix(".example")} TXT "{rng.randbytes(40).hex()}"\n'
    reverse = head + "".join(f"{number} PTR {name}.office.example.\n" for name, number in servers.items())
    zones = {
        "office.example": office,
        "example": world,
        ".".join(reversed(prefix.split("."))) + ".in-addr.arpa": reverse,
    }
    text = f"""options {{ directory "{host.folder}"; pid-file none; listen-on {{ {host.address}; 127.0.0.1; }};
        recursion no; allow-query {{ any; }}; session-keyfile none; }}; controls {{ }};\n"""
    for zone, records in zones.items():
        text += f'zone "{zone}" {{ type primary; file "{host.write(f"{zone}.zone", records)}"; }};\n'
    host.serve(["named", "-g", "-c", str(host.write("named.conf", text))], 53, "udp")
    host.write("names.txt", "\n".join(name + ".example" for name in names))


def ssh(host: Host) -> None:
    """OpenSSH with passwords and the sftp subsystem."""
    key = host.folder / "hostkey"
    run_in(None, ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    Path("/run/sshd").mkdir(exist_ok=True)
    configuration = f"""Port 22\nHostKey {key}\nUsePAM no\nPasswordAuthentication yes\nUseDNS no\nMaxStartups 100:30:200
        PidFile {host.folder}/sshd.pid\nSubsystem sftp internal-sftp\nMaxAuthTries 6\n"""
    host.serve(["/usr/sbin/sshd", "-D", "-e", "-f", str(host.write("sshd.conf", configuration))], 22)


def ftp(host: Host) -> None:
    """Vsftpd for the accounts, passive mode."""
    empty = host.folder / "empty"
    empty.mkdir(exist_ok=True)
    configuration = f"""listen=YES\nanonymous_enable=NO\nlocal_enable=YES\nwrite_enable=YES\nsecure_chroot_dir={empty}
pam_service_name=testbed-ftp\nuse_localtime=NO\nxferlog_enable=NO\nmax_per_ip=0\nbackground=NO\n"""
    configuration += "pasv_min_port=50000\npasv_max_port=50999\nseccomp_sandbox=NO\ndelay_failed_login=0\n"
    Path("/etc/pam.d/testbed-ftp").write_text("auth required pam_unix.so nodelay\naccount required pam_unix.so\n")
    host.serve(["vsftpd", str(host.write("vsftpd.conf", configuration))], 21)


def smtp(host: Host) -> None:
    """OpenSMTPD that keeps what it is given in mailboxes."""
    run_in(None, ["mkdir", "-p", "/var/spool/smtpd", "/run/opensmtpd"])
    run_in(None, ["chmod", "711", "/var/spool/smtpd"])
    aliases = host.write("aliases", "".join(f"{name}: {name}\n" for name in ACCOUNTS))
    configuration = f"""table aliases file:{aliases}\nlisten on {host.address} port 25 hostname mail.office.example
action keep maildir "/home/%{{user.username}}/Maildir" alias <aliases>\nmatch from any for any action keep\n"""
    path = host.write("smtpd.conf", configuration)
    path.chmod(0o600)
    host.serve(["smtpd", "-d", "-f", str(path)], 25)


def imap(host: Host) -> None:
    """Dovecot over plain IMAP, mailboxes with some mails in them."""
    rng = random.Random("imap")
    for name in ACCOUNTS:
        folder = Path("/home", name, "Maildir")
        for part in ("new", "cur", "tmp"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for number in range(15):
            mail = f"From: {rng.choice(list(ACCOUNTS))}@office.example\nTo: {name}@office.example\n"
            mail += f"Subject: {sentence(rng, 5)}\n\n{sentence(rng, rng.randrange(20, 900))}\n"
            (folder / "cur" / f"{1_700_000_000 + number}.{number}.mail:2,S").write_text(mail)
        run_in(None, ["chown", "-R", f"{name}:", str(folder)])
    text = f"""base_dir = /run/dovecot-{host.name}\nlog_path = {host.folder}/dovecot.log\nprotocols = imap\nssl = no
disable_plaintext_auth = no\nlisten = {host.address}\nmail_location = maildir:~/Maildir\nfirst_valid_uid = 100
auth_failure_delay = 0\npassdb {{\n driver = shadow\n}}\nuserdb {{\n driver = passwd\n}}\n
service imap-login {{\n inet_listener imaps {{\n port = 0\n }}\n}}\n"""
    host.serve(["dovecot", "-F", "-c", str(host.write("dovecot.conf", text))], 143)


def mysql(host: Host) -> None:
    """MariaDB with one database."""
    data = host.folder / "mysql"
    shutil.rmtree(data, ignore_errors=True)
    run_in(None, ["mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}", "--skip-test-db"])
    options = [f"--datadir={data}", f"--socket={host.folder}/mysql.sock", f"--pid-file={host.folder}/mysql.pid"]
    host.folder.chmod(0o777)
    server = ["mariadbd", "--no-defaults", "--user=mysql", *options, f"--bind-address={host.address}"]
    host.serve([*server, "--skip-name-resolve", "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M"], 3306)
    rng = random.Random("mysql")
    rows = ", ".join(f"('{sentence(rng, 3)}', {rng.randrange(10_000)})" for _ in range(400))
    statements = f"""create database shop; use shop; create table orders (id int auto_increment primary key,
        item varchar(80), price int); insert into orders (item, price) values {rows};
        create user 'app'@'%' identified by 'app-secret'; grant all on shop.* to 'app'@'%';"""
    host.run(["mariadb", "--no-defaults", f"--socket={host.folder}/mysql.sock", "-u", "root", "-e", statements])


def postgresql(host: Host) -> None:
    """PostgreSQL with the tables of pgbench."""
    data = host.folder / "postgresql"
    data.mkdir()
    shutil.chown(data, "postgres", "postgres")
    secret = host.write("secret", "app-secret\n")
    secret.chmod(0o644)
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    run_in(None, [*as_postgres, str(POSTGRES / "initdb"), "-D", str(data), "-U", "app", f"--pwfile={secret}",
                  "-A", "scram-sha-256", "--no-sync"])  # fmt: skip
    with open(data / "pg_hba.conf", "a") as file:
        file.write("host all all 0.0.0.0/0 scram-sha-256\n")
    options = ["-c", f"listen_addresses={host.address}", "-c", f"unix_socket_directories={data}", "-c", "fsync=off"]
    host.serve([*as_postgres, str(POSTGRES / "postgres"), "-D", str(data), *options], 5432)
    login = f"host={host.address} user=app password=app-secret dbname=postgres"
    host.run(["env", "PGPASSWORD=app-secret", str(POSTGRES / "pgbench"), "-q", "-i", "-s", "1", login])


def redis(host: Host) -> None:
    """Redis without persistence."""
    host.serve(["redis-server", "--bind", host.address, "--protected-mode", "no", "--save", "", "--port", "6379"], 6379)


def mqtt(host: Host) -> None:
    """Mosquitto without accounts."""
    text = f"listener 1883 {host.address}\nallow_anonymous true\npersistence false\n"
    host.serve(["mosquitto", "-c", str(host.write("mosquitto.conf", text))], 1883)


def smb(host: Host) -> None:
    """Samba with one share for the accounts."""
    share = host.folder / "share"
    fill(share, random.Random("smb"), 30)
    share.chmod(0o777)
    folders = {name: host.folder / "samba" / name for name in ("private", "lock", "state", "cache", "run")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    text = f"""[global]\nworkgroup = OFFICE\nserver role = standalone server\ninterfaces = {host.address}/24
bind interfaces only = yes\nsmb ports = 445\ndisable netbios = yes\nload printers = no\nprintcap name = /dev/null
lock directory = {folders["lock"]}\nstate directory = {folders["state"]}\ncache directory = {folders["cache"]}
pid directory = {folders["run"]}\nprivate dir = {folders["private"]}\nncalrpc dir = {folders["run"]}/ncalrpc
log file = {host.folder}/samba.log\n[data]\npath = {share}\nread only = no\nforce user = root\n"""
    path = host.write("smb.conf", text)
    for name, password in ACCOUNTS.items():
        host.run(["sh", "-c", f"printf '%s\\n%s\\n' '{password}' '{password}' | smbpasswd -c {path} -s -a {name}"])
    host.serve(["smbd", "--foreground", "--no-process-group", "-s", str(path)], 445)


def ntp(host: Host) -> None:
    """Chrony as a server that never touches the clock."""
    text = f"local stratum 8\nallow\nbindaddress {host.address}\ncmdport 0\npidfile {host.folder}/chrony.pid\n"
    host.serve(["chronyd", "-n", "-x", "-u", "root", "-f", str(host.write("chrony.conf", text))], 123, "udp")


def syslog(host: Host) -> None:
    """Rsyslog over UDP and TCP."""
    text = 'module(load="imudp")\nmodule(load="imtcp")\ninput(type="imudp" port="514")\n'
    text += f'input(type="imtcp" port="514")\n*.* {host.folder}/messages\n'
    path = host.write("rsyslog.conf", text)
    host.serve(["rsyslogd", "-n", "-i", str(host.folder / "rsyslog.pid"), "-f", str(path)], 514)


def bittorrent(host: Host) -> None:
    """opentracker, and aria2 that seeds eight files."""
    rng = random.Random("bittorrent")
    seeded = host.folder / "seeded"
    seeded.mkdir()
    torrents, known = [], []
    for number in range(8):
        path = seeded / f"archive{number}.bin"
        path.write_bytes(rng.randbytes(rng.randrange(60_000, 500_000)))
        torrents.append(host.folder / f"archive{number}.torrent")
        tracker = f"http://{host.address}:6969/announce"
        run_in(None, ["transmission-create", "-o", str(torrents[-1]), "-t", tracker, str(path)])
        shown = run_in(None, ["transmission-show", str(torrents[-1])]).decode()
        known.append(re.findall(r"Hash(?: v1)?: ([0-9a-f]{40})", shown)[0])
    host.write("known.txt", "\n".join(known) + "\n").chmod(0o644)
    tracker = ["opentracker", "-i", host.address, "-p", "6969", "-P", "6969", "-u", "nobody", "-w", "known.txt"]
    host.serve([*tracker, "-d", str(host.folder)], 6969)
    options = ["--enable-dht=false", "--bt-enable-lpd=false", "--seed-ratio=0.0", "--listen-port=6881"]
    options += ["--check-integrity=true", f"--dir={seeded}", "--disable-ipv6=true", "--max-concurrent-downloads=20"]
    host.serve(["aria2c", *options, *map(str, torrents)], 6881)


def ldap(host: Host) -> None:
    """OpenLDAP with the accounts as a directory."""
    data = host.folder / "ldap"
    data.mkdir()
    text = f"""include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\nloglevel none
pidfile {host.folder}/slapd.pid\ndatabase mdb\nmaxsize 10485760\nsuffix "dc=office,dc=example"
rootdn "cn=admin,dc=office,dc=example"\nrootpw app-secret\ndirectory {data}\naccess to * by * read\n"""
    path = host.write("slapd.conf", text)
    entries = "dn: dc=office,dc=example\nobjectClass: dcObject\nobjectClass: organization\no: Office\ndc: office\n\n"
    for name in ACCOUNTS:
        entries += f"dn: cn={name},dc=office,dc=example\nobjectClass: inetOrgPerson\ncn: {name}\nsn: {name}\n"
        entries += f"mail: {name}@office.example\nuserPassword: {ACCOUNTS[name]}\n\n"
    run_in(None, ["slapadd", "-f", str(path), "-l", str(host.write("entries.ldif", entries))])
    host.serve(["slapd", "-d", "0", "-f", str(path), "-h", f"ldap://{host.address}:389"], 389)


def snmp(host: Host) -> None:
    """Net-SNMP's agent with a public community."""
    path = host.write(
        "snmpd.conf",
        f"rocommunity public\nagentaddress udp:{host.address}:161\nsysLocation office\nsysDescr Linux office\n",
    )
    host.serve(["snmpd", "-f", "-Lo", "-C", "-c", str(path), "-p", str(host.folder / "snmpd.pid")], 161, "udp")


def memcached(host: Host) -> None:
    """Memcached over TCP."""
    host.serve(["memcached", "-u", "nobody", "-l", host.address, "-m", "16"], 11211)


def rsync(host: Host) -> None:
    """Rsync as a daemon with one module."""
    fill(host.folder / "module", random.Random("rsync"), 40)
    text = f"uid = root\nuse chroot = no\npid file = {host.folder}/rsync.pid\n[data]\npath = {host.folder}/module\n"
    text += f"read only = no\n[incoming]\npath = {host.folder}/incoming\nread only = no\n"
    (host.folder / "incoming").mkdir()
    host.serve(["rsync", "--daemon", "--no-detach", f"--config={host.write('rsyncd.conf', text)}"], 873)


def git(host: Host) -> None:
    """Git's daemon with four repositories."""
    for number in range(4):
        repository = host.folder / "git" / f"r{number}"
        fill(repository, random.Random(f"git{number}"), 10 + 10 * number)
        as_someone = ["git", "-C", str(repository), "-c", "user.name=anna", "-c", "user.email=anna@office.example"]
        run_in(None, [*as_someone, "init", "-q"])
        run_in(None, [*as_someone, "add", "."])
        run_in(None, [*as_someone, "commit", "-q", "-m", "Begin"])
    base = str(host.folder / "git")
    host.serve(["env", f"HOME={host.folder}", "git", "-c", "safe.directory=*", "daemon", "--export-all",
                f"--base-path={base}", "--reuseaddr"], 9418)  # fmt: skip


def tftp(host: Host) -> None:
    """Tftpd with some small files."""
    fill(host.folder / "boot", random.Random("tftp"), 20)
    host.serve(["in.tftpd", "-L", "-s", "-a", f"{host.address}:69", str(host.folder / "boot")], 69, "udp")


SERVICES: dict[str, Callable[[Host], None]] = {
    function.__name__: function
    for function in (
        http, intranet, dns, ssh, ftp, smtp, imap, mysql, postgresql, redis, mqtt, smb, ntp, syslog, bittorrent, ldap,
        snmp, memcached, rsync, git, tftp,
    )
}  # fmt: skip
# What these servers, and the network, need to be installed.
PROGRAMS = (
    "apache2 aria2c chronyd dovecot ethtool git in.tftpd ip mariadb-install-db mariadbd memcached mosquitto named "
    "nginx openssl opentracker redis-server rsync rsyslogd setpriv slapadd slapd smbd smbpasswd smtpd snmpd ss "
    "ssh-keygen tcpdump transmission-create transmission-show unshare useradd vsftpd"
).split()
