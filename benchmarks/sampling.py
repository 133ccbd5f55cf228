"""Packets per second of FlowSampler and of dpkt reading the same capture.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py CAPTURE [--runs 5]

Cases take turns in one run, in CPU seconds of one thread, after a warm-up of compiled code and page cache; medians are
printed. "read" goes through the file with a 1 MB buffer, "dpkt reader" walks the records, "dpkt five-tuple" also
dissects each packet as far as the ports.
"""

import argparse
import statistics
import time

import dpkt

from sklearn_docids import FlowSampler


def read(path):
    buffer = bytearray(2**20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def sample(path):
    return FlowSampler(fields="raw").flows(path)


def dpkt_reader(path):
    with open(path, "rb") as file:
        return sum(1 for _ in dpkt.pcap.Reader(file))


def dpkt_five_tuple(path):
    five_tuples = set()
    with open(path, "rb") as file:
        for _, data in dpkt.pcap.Reader(file):
            packet = dpkt.ethernet.Ethernet(data).data
            if isinstance(packet, dpkt.ip.IP | dpkt.ip6.IP6) and isinstance(packet.data, dpkt.tcp.TCP | dpkt.udp.UDP):
                five_tuples.add((packet.src, packet.dst, packet.p, packet.data.sport, packet.data.dport))
    return five_tuples


CASES = {"read": read, "FlowSampler": sample, "dpkt reader": dpkt_reader, "dpkt five-tuple": dpkt_five_tuple}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("capture")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    flows = sample(args.capture)
    n_packets = flows.counters[0]["packets"]
    seconds = {name: [] for name in CASES}
    for _ in range(args.runs):
        for name, case in CASES.items():
            began = time.process_time()
            case(args.capture)
            seconds[name].append(time.process_time() - began)
    ours = statistics.median(seconds["FlowSampler"])
    print(f"{n_packets} packets, {len(flows)} flows, {args.runs} runs\n")
    print("| case | CPU s, median (lowest-highest) | packets/s | x FlowSampler |\n|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{median:.3f} ({min(values):.3f}-{max(values):.3f})"
        print(f"| {name} | {spread} | {n_packets / median:,.0f} | {median / ours:.2f} |")


if __name__ == "__main__":
    main()
