# SPDX-License-Identifier: BSD-3-Clause
"""The two drawings of the site, made of real flows and of the real network; colours are those of the theme."""

from functools import cache
from html import escape
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sklearn_docids import FlowSampler
from sklearn_docids._network.table1 import DOCIDSNetwork
from sklearn_docids.datasets import load_testbed

# One flow, the tunnel through DNS of "Three flows of the testbed" in explanation/views.md, and the normal flows of the
# test period, as the model of `docids fit docids-demo/train.pcap.xz` scores them.
TUNNEL_REQUEST = b"\xc3\x83"
TUNNEL_P = {"bytes": 0.0068, "statistics": 0.0083, "requests": 0.00016, "novelty": 1.0, "content": 0.18}
TUNNEL_SCORE, THRESHOLD = -20.2, -11.1
NORMAL_SCORES = (2, 1, 2, 4, 3, 4, 23, 36, 54, 127, 190, 291, 443, 524, 640, 637, 1254, 978)  # from -18 on, by ones
CARD, GAP, HEIGHT = 168, 34, 188


def draw(folder: Path) -> None:
    """Write the drawings; one that has not changed stays, and with it the pages that show it."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {"way-wide.svg": way(wide=True), "way-narrow.svg": way(wide=False), "network.svg": network()}
    for name, drawing in drawings.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != drawing:
            path.write_text(drawing, encoding="utf-8")


def _svg(width: float, height: float, title: str, parts: list[str], name: str) -> str:
    return (
        f'<svg class="drawn {name}" role="img" aria-label="{escape(title)}" viewBox="0 0 {width:g} {height:g}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="{kind}"/>'


def _arrow(x1: float, y1: float, x2: float, y2: float, kind: str = "arrow") -> str:
    length = float(np.hypot(x2 - x1, y2 - y1))
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    left, right = (x2 - 8 * ux - 4 * uy, y2 - 8 * uy + 4 * ux), (x2 - 8 * ux + 4 * uy, y2 - 8 * uy - 4 * ux)
    head = f'<path class="{kind} head" d="M{x2:g},{y2:g}L{left[0]:g},{left[1]:g}L{right[0]:g},{right[1]:g}Z"/>'
    return f'<path class="{kind}" d="M{x1:g},{y1:g}L{x2 - 7 * ux:g},{y2 - 7 * uy:g}"/>{head}'


def way(*, wide: bool) -> str:
    """Return the way from a capture to an incident, side by side or one below the other."""
    rows, tunnel = _flows()
    stages = (
        ("capture", "packets as they came", _capture(tunnel)),
        ("rows and columns", "one row per flow", _rows(rows)),
        ("views", "how unusual, in five ways", _views()),
        ("score", "all views in one number", _score()),
        ("incident", "what to look at, and why", _incident()),
    )
    across, down = (CARD + GAP, 0) if wide else (0, HEIGHT + GAP)
    parts = []
    for n, (name, about, inside) in enumerate(stages):
        x, y = 1 + n * across, 1 + n * down
        parts.append(
            f'<g transform="translate({x:g},{y:g})">{_box(0, 0, CARD, HEIGHT)}{_text(12, 22, name, "name")}'
            f"{_text(12, 38, about, 'about')}{inside}</g>"
        )
        if n and wide:
            parts.append(_arrow(x - GAP + 4, y + HEIGHT / 2, x - 4, y + HEIGHT / 2))
        elif n:
            parts.append(_arrow(x + CARD / 2, y - GAP + 4, x + CARD / 2, y - 4))
    size = (len(stages) * across - GAP + 2, HEIGHT + 2) if wide else (CARD + 2, len(stages) * down - GAP + 2)
    title = (
        "From a capture to an incident: packets become rows and columns, five views judge them, one score, an incident"
    )
    return _svg(*size, title, parts, "wide" if wide else "narrow")


@cache
def _flows() -> tuple[np.ndarray, bytes]:
    """Return rows of some flows, and the first bytes of a request through a tunnel."""
    testbed = load_testbed(sampler=FlowSampler(layout="payload"))
    requests = testbed.X_test[:, 8:80]
    tunnel = next(n for n, request in enumerate(requests) if request.tobytes().startswith(TUNNEL_REQUEST))
    return testbed.X_test[[*range(0, 4000, 500), tunnel]], requests[tunnel].tobytes()


def _capture(request: bytes) -> str:
    lines = [request[at : at + 8] for at in range(0, 56, 8)]
    return "".join(_text(12, 62 + 17 * n, line.hex(" "), "mono") for n, line in enumerate(lines))


def _rows(rows: np.ndarray) -> str:
    parts = []
    for n, row in enumerate(rows):
        y = 54 + 13 * n
        for i, value in enumerate(row[8:32].tolist()):
            parts.append(
                f'<rect x="{12 + 5 * i}" y="{y}" width="4.4" height="10" class="byte" '
                f'opacity="{0.12 + value / 290:.2f}"/>'
            )
        for i in range(3):
            parts.append(f'<rect x="{136 + 7 * i}" y="{y}" width="5.6" height="10" class="column"/>')
    return "".join(parts)


def _views() -> str:
    parts = []
    for n, (name, p) in enumerate(TUNNEL_P.items()):
        y = 54 + 23 * n
        parts.append(_text(12, y + 9, name, "small"))
        parts.append(f'<rect x="76" y="{y}" width="{9 * -np.log(p):.1f}" height="11" rx="2" class="bar"/>')
    return "".join(parts) + _text(12, 180, "the longer, the less normal", "about")


def _score() -> str:
    def place(score: float) -> float:
        return 156 + score * 6.6

    steps = "".join(f"V{148 - n / 16:g}H{place(score + 1):g}" for score, n in enumerate(NORMAL_SCORES, -18))
    parts = [f'<path class="hump" d="M{place(-18):g},148{steps}V148Z"/>']
    parts.append('<path class="axis" d="M12,148 H158"/>')
    parts.append(f'<path class="threshold" d="M{place(THRESHOLD):g},54 V148"/>')
    parts.append(_text(place(THRESHOLD) - 4, 64, "threshold", "small", "end"))
    parts.append(f'<circle cx="{place(TUNNEL_SCORE):g}" cy="148" r="5.5" class="flagged"/>')
    parts.append(_text(12, 134, "this flow", "small"))
    return "".join(parts) + _text(12, 172, "abnormal", "about") + _text(156, 172, "normal", "about", "end")


def _incident() -> str:
    lines = (
        "10.77.0.15",
        "→ 10.77.0.4:53/udp",
        "",
        "requests: 12 of its",
        "first 23 pairs of",
        "bytes were never in",
        "a request to udp/53",
    )
    return "".join(_text(12, 64 + 17 * n, line, "small" if n > 2 else "strong") for n, line in enumerate(lines))


def network() -> str:
    """Return the network with the shapes and sizes of the real one."""
    n_columns, n_classes = 320, 22
    net = DOCIDSNetwork(n_columns, n_classes)
    shapes = _shapes(net, n_columns)
    parts = []
    for y, name, about in ((40, "target", "your normal flows"), (190, "reference", "labelled flows")):
        parts += [_box(1, y, 130, 62), _text(14, y + 24, name, "name"), _text(14, y + 41, about, "about"),
                  _text(14, y + 55, f"{n_columns} bytes", "about")]  # fmt: skip
        parts.append(_arrow(133, y + 31, 196, y + 31))
    parts += [_box(198, 12, 176, 262, "box core"), _text(212, 36, "g: features", "name"),
              _text(212, 52, f"{_size(net.g):,} weights", "about")]  # fmt: skip
    for n, (layer, shape) in enumerate(shapes):
        parts += [_text(212, 78 + 27 * n, layer, "small"), _text(362, 78 + 27 * n, shape, "mono", "end")]
    boxes = (
        (30, "autoencoder", f"{_size(net.autoencoder):,} weights", ("256 → 128 → 64", "→ 128 → 256")),
        (176, "h_c: class scores", f"{_size(net.h_c):,} weights", (f"256 → {n_classes} classes",)),
    )
    for y, name, about, lines in boxes:
        parts += [
            _box(438, y, 150, 84, "box core"),
            _text(450, y + 22, name, "name"),
            _text(450, y + 38, about, "about"),
        ]
        parts += [_text(450, y + 57 + 15 * n, line, "mono") for n, line in enumerate(lines)]
        parts.append(_arrow(376, y + 42, 436, y + 42))
    losses = ((42, 72, "reconstruction", "of the target"), (150, 205, "compactness", "of the target"),
              (230, 232, "descriptiveness", "of the reference"))  # fmt: skip
    for y, from_y, name, about in losses:
        parts += [
            _box(652, y, 146, 60, "box loss"),
            _text(664, y + 23, name, "name"),
            _text(664, y + 40, "loss " + about, "about"),
        ]
        parts.append(_arrow(590, from_y, 650, y + 30))
    title = "The network: target and reference share g; the autoencoder sees the target, the class scores both"
    return _svg(800, 292, title, parts, "network")


def _size(module: nn.Module) -> int:
    return sum(weights.numel() for weights in module.parameters())


def _shapes(net: DOCIDSNetwork, n_columns: int) -> list[tuple[str, str]]:
    """Return the layers of g that change the shape, with what a flow is behind each."""
    names = {nn.Conv2d: "convolution", nn.MaxPool2d: "maximum of 2", nn.Linear: "dense"}
    found: list[tuple[str, str]] = []

    def note(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        shape = " × ".join(str(n) for n in output.shape[1:] if n > 1)
        found.append((names[type(layer)], shape))

    hooks = [layer.register_forward_hook(note) for layer in net.g if type(layer) in names]
    net.eval()
    with torch.no_grad():
        net.features(torch.zeros(1, n_columns, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return [("bytes", str(n_columns)), *found]
