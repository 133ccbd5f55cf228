"""Packets by fate, flows and packets per flow beside tshark's, on every capture of a folder.

    python benchmarks/against_tshark.py FOLDER

tshark dissects, this script sorts its frames by the same rules: the outermost IP packet counts, reassembly is off, a
flow is an undirected five-tuple of TCP or UDP. The sampler's rules that tshark does not have are switched off
(``idle_timeout=None, tcp_restart=False``); the number of flows with them, which are the defaults, stands beside.
"""

import argparse
import collections
import subprocess
from pathlib import Path

from sklearn_docids import FlowSampler

FIELDS = (
    "frame.protocols", "ip.src", "ip.dst", "ip.proto", "ip.frag_offset", "ipv6.src", "ipv6.dst", "ipv6.fraghdr.offset",
    "tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport",
)  # fmt: skip


def frames(path):
    """Yield a dict of fields per frame, the first occurrence of each."""
    command = ["tshark", "-n", "-r", path, "-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"]
    command += ["-T", "fields", "-E", "occurrence=f", "-E", "separator=/t"]
    for field in FIELDS:
        command += ["-e", field]
    result = subprocess.run(command, capture_output=True, text=True)
    for line in result.stdout.splitlines():
        yield dict(zip(FIELDS, line.split("\t"), strict=True))


def fate_and_flow(frame):
    """Return what happens to a frame and its five-tuple."""
    layers = frame["frame.protocols"].split(":")
    ip = next((i for i, layer in enumerate(layers) if layer in ("ip", "ipv6")), None)
    if ip is None:
        return "non_ip", None
    version = layers[ip]
    if int(frame["ip.frag_offset"] or frame["ipv6.fraghdr.offset"] or "0", 0):
        return "fragment", None
    above = next((layer for layer in layers[ip + 1 :] if not layer.startswith("ipv6.")), "")
    if above not in ("tcp", "udp"):
        return "other_protocol", None
    ends = [
        (frame[f"{version}.src"], frame[f"{above}.srcport"]),
        (frame[f"{version}.dst"], frame[f"{above}.dstport"]),
    ]
    return ("sampled", (*sorted(ends), above)) if all(port for _, port in ends) else ("short", None)


def compare(path):
    """Return what tshark and the sampler say of a capture."""
    fates, flows = collections.Counter(), collections.Counter()
    for frame in frames(path):
        fate, flow = fate_and_flow(frame)
        fates[fate] += 1
        if flow:
            flows[flow] += 1
    table = FlowSampler(idle_timeout=None, tcp_restart=False, max_live_flows=2**22).flows(path)
    counters = {k: n for k, n in table.counters[0].items() if n and not k.startswith(("packets", "flows"))}
    ours = (counters, sorted((table.packets_forward + table.packets_backward).tolist()))
    return (dict(fates), sorted(flows.values())), ours, len(FlowSampler().flows(path))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    total, n_equal, n_flows, n_default = collections.Counter(), 0, 0, 0
    paths = sorted(p for p in args.folder.rglob("*") if p.suffix in (".pcap", ".pcapng"))
    for path in paths:
        theirs, ours, default = compare(path)
        n_equal += theirs == ours
        total.update(ours[0])
        n_flows, n_default = n_flows + len(ours[1]), n_default + default
        if theirs != ours:
            print(
                f"{path.name}: tshark {theirs[0]}, {len(theirs[1])} flows; FlowSampler {ours[0]}, {len(ours[1])} flows"
            )
    print(
        f"{n_equal} of {len(paths)} captures equal; {dict(total)}; {n_flows} flows, {n_default} with default timeouts"
    )


if __name__ == "__main__":
    main()
