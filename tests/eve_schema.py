"""What Suricata's schema for EVE says of lines such as ours, and a check that needs no library.

Facts of ``etc/schema.json`` of Suricata 8.0.7: names, types, the pattern of times, and where no other names may be. Of
objects that our lines have not, it is left out that they may be there.
"""

import re

TEXT, INTEGER, FREE = {"type": "string"}, {"type": "integer"}, {"type": "object"}
TEXTS = {"type": "array", "minItems": 1, "items": TEXT}


def closed(**properties):
    return {"type": "object", "additionalProperties": False, "properties": properties}


def integers(*names):
    return dict.fromkeys(names, INTEGER)


def texts(*names):
    return dict.fromkeys(names, TEXT)


ALERT = closed(
    **texts("action", "category", "signature", "rule", "xff"),
    **integers("gid", "rev", "severity", "signature_id"),
    context=FREE,
    metadata={"type": "object", "properties": dict.fromkeys(("attack_target", "signature_severity", "tag"), TEXTS)},
    references=TEXTS,
    source=closed(ip=TEXT, port=INTEGER),
    target=closed(ip=TEXT, port=INTEGER),
)
FLOW = closed(
    **texts("action", "dest_ip", "end", "reason", "src_ip", "start", "state"),
    **integers("age", "bytes_toclient", "bytes_toserver", "dest_port", "pkts_toclient", "pkts_toserver", "src_port"),
    alerted={"type": "boolean"},
)
STATS = closed(
    capture=closed(**integers("errors", "kernel_drops", "kernel_ifdrops", "kernel_packets")),
    decoder=closed(**integers("bytes", "invalid", "ipv4", "ipv6", "pkts", "tcp", "udp")),
    detect=closed(**integers("alert", "alert_queue_overflow", "alerts_suppressed")),
    flow=closed(**integers("active", "memcap", "tcp", "total", "udp")),
    uptime=INTEGER,
)
SCHEMA = {
    "required": ["event_type", "timestamp"],
    **closed(
        **texts("app_proto", "community_id", "dest_ip", "direction", "event_type", "host", "in_iface"),
        **texts("pcap_filename", "pkt_src", "proto", "src_ip"),
        **integers("dest_port", "flow_id", "ip_v", "pcap_cnt", "src_port"),
        alert=ALERT,
        flow=FLOW,
        metadata=closed(entropy=FREE, flowbits=TEXTS, flowints=FREE),
        stats=STATS,
        timestamp={"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d+[+\-]\d+$"},
        vlan={"type": "array", "minItems": 1, "items": {"type": "number"}},
    ),
}
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}


def faults(value, schema=SCHEMA, name="line"):
    """Return what is wrong with a value that was read from JSON."""
    kind = schema["type"]
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return [f"{name} is no {kind}"]
    found = [f"{name} lacks {key}" for key in schema.get("required", ()) if key not in value]
    if kind == "string" and not re.search(schema.get("pattern", ""), value):
        found.append(f"{name} does not match its pattern")
    if kind == "array":
        found += [f"{name} is empty"] * (len(value) < schema.get("minItems", 0))
        found += [fault for item in value for fault in faults(item, schema["items"], f"{name}[]")]
    if kind == "object":
        for key, item in value.items():
            if key in schema.get("properties", {}):
                found += faults(item, schema["properties"][key], f"{name}.{key}")
            elif not schema.get("additionalProperties", True):
                found.append(f"{name}.{key} has no place")
    return found
