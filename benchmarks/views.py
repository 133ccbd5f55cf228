"""How well detectors of flow tables find attacks, each kind of attack alone beside all the normal traffic.

A view such as "content" judges a flow by the flows before it. So each kind of attack is mixed with the normal flows of
its period and scored in that table: the past of a flow never holds another kind. Recalls are given for thresholds that
flag a share of the normal flows of the same table, those of the attacked hosts among them, and for thresholds set by
normal traffic without any attack.

The captures of site A are every other minute of one exercise. An attack that was recorded at another time or in another
network is moved into the normal period, so that it has a past; its hosts are new there all the same.

Every fit leaves a file of scores in the results folder as it ends, and is not repeated: the command can be stopped and
started again, and run for several studies at a time. ``--report`` prints tables of all of them.

    OMP_NUM_THREADS=1 python benchmarks/views.py --results views-results
    python benchmarks/views.py --results views-results --report

Views that are left out, or stand alone, are those of the same fit, as each view has a calibration of its own. Nothing
here is tuned on the test part; ``--part validation`` is where to look while something is being chosen.
"""

import argparse
import copy
import dataclasses
import functools
import hashlib
import json
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import Bunch

from sklearn_docids import DOCIDSDetector, FlowSampler, MultiViewDetector, ReferenceData
from sklearn_docids._measures import Ranking, average_precision, recall_at_fpr, resolves, roc_auc
from sklearn_docids._thresholds import conformal_threshold
from sklearn_docids._views.payload import services
from sklearn_docids._views.statistics import statistics_of
from sklearn_docids._views.tails import Tails
from sklearn_docids.aggregation import find_incidents
from sklearn_docids.capture.context import CONTEXT_COLUMNS, FlowContext
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.datasets import load_testbed
from sklearn_docids.detectors._calibration import Calibration, in_time_order
from sklearn_docids.detectors._multiview import VIEWS

SITES = {"A": "targetA_windows_domain", "B": "targetB_smart_speaker"}
RATE = 0.01
MAX_FPRS = (0.01, 0.001)
WINDOWS_S = (60, 300)
N_BLOCKS = 4
WAYS = ("as fitted", "calibrated there")
ALL = "all views"
ON_PACKETS, ON_PAYLOAD = "DOC-IDS, packet rows", "DOC-IDS, payload rows"
PAYLOAD = FlowSampler(layout="payload")
# Twice the packets of a default row, which is the beginning of this one.
PACKETS = FlowSampler(n_packets=8)
N_DEFAULT_COLUMNS = FlowSampler().n_packets * FlowSampler().n_bytes


# ---------------------------------------------------------------------------------------------------------------------
# Traffic


class Flows:
    """The same flows twice: with rows of payload, and with rows of packets."""

    def __init__(self, payload, packets):
        self.payload = payload
        self.packets = packets

    def __len__(self):
        return len(self.payload)

    def __getitem__(self, rows):
        return Flows(self.payload[rows], self.packets[rows])

    def rows(self, layout):
        """Return what `DOCIDSDetector` takes."""
        return self.payload.X if layout == "payload" else self.packets.X[:, :N_DEFAULT_COLUMNS]

    @property
    def time_first(self):
        return self.payload.time_first

    def moved(self, nanoseconds):
        """Return the flows at another time; one number, or one per flow."""
        return Flows(moved(self.payload, nanoseconds), moved(self.packets, nanoseconds))


def moved(table, nanoseconds):
    records = table.rows.records.copy()
    for name in ("time_first", "time_last"):
        records[name] += nanoseconds
    rows = dataclasses.replace(table.rows, records=records)
    return FlowTable(rows, table.capture, table.captures, table.counters)


def joined(parts):
    tables = zip(*((part.payload, part.packets) for part in parts), strict=True)
    return Flows(*(FlowTable.concatenate(same) for same in tables))


def sampled(paths):
    return Flows(PAYLOAD.flows(paths), PACKETS.flows(paths))


@functools.cache
def load(target, part, folder):
    """Return training flows, reference, normal flows to score, and the flows of each attack."""
    return load_office(part) if target == "testbed" else load_site(target, folder)


def load_office(part):
    payload, packets = (load_testbed(sampler=sampler) for sampler in (PAYLOAD, PACKETS))
    parts = {
        name: Flows(payload[f"flows_{name}"], packets[f"flows_{name}"])
        for name in ("reference", "train", "validation", "test")
    }
    kinds_of = {"validation": payload.attack_validation, "test": payload.attack}
    flows, kinds = parts[part], kinds_of[part]
    return Bunch(
        train=parts["train"],
        reference=(parts["reference"], payload.y_reference),
        normal=flows[kinds == ""],
        attacks={str(kind): flows[kinds == kind] for kind in np.unique(kinds[kinds != ""])},
        dirty=attacks_in_training(parts, kinds_of["validation"]),
    )


def attacks_in_training(parts, kinds):
    """Return the attacks of the validation period as if they had come as long after the beginning of training."""
    later = parts["validation"].time_first.min() - parts["train"].time_first.min()
    return parts["validation"][kinds != ""].moved(-later)


def load_site(site, folder):
    place = folder / SITES[site]
    classes = sorted((folder / "reference_exact").glob("*.pcap"))
    reference = sampled(classes)
    normal = sampled(place / "normal_test.pcap")
    attacks = {path.stem: sampled(path) for path in sorted(place.glob("attack_*.pcap"))}
    elsewhere = {path.stem: sampled(path) for path in sorted((folder / "attacks_crosslab").glob("*.pcap"))}
    return Bunch(
        train=sampled(place / "normal_train.pcap"),
        reference=(reference, np.array([path.stem for path in classes])[reference.payload.capture]),
        normal=normal,
        attacks={name: brought_to(normal, flows) for name, flows in (attacks | elsewhere).items()},
    )


def brought_to(normal, flows):
    """Return an attack at the time of the normal flows; one that was recorded then stays as it is.

    What was recorded at another time begins a quarter into the normal period, each part of it that no pause of an hour
    divides. Without that, the recent past of its flows would hold nothing else.
    """
    times = flows.time_first
    first, last = normal.time_first.min(), normal.time_first.max()
    if first <= times.min() + 1e9 and times.min() < last:
        return flows
    order = np.argsort(times, kind="stable")
    begins = np.diff(times[order], prepend=np.iinfo(np.int64).min // 2) > 3600 * 10**9
    by = np.empty(len(times), np.int64)
    by[order] = (first + (last - first) // 4 - times[order][begins])[np.cumsum(begins) - 1]
    return flows.moved(by)


def contaminated(data, share, seed):
    """Return the training flows with attacks of the validation period instead of a share of them."""
    rng = np.random.default_rng(seed)
    n = round(share * len(data.train))
    kept = np.sort(rng.permutation(len(data.train))[n:])
    return joined([data.train[kept], data.dirty[np.sort(rng.permutation(len(data.dirty))[:n])]])


# ---------------------------------------------------------------------------------------------------------------------
# Detectors: `fit`, then scores by name (the lower, the more abnormal), of which those below `offsets` are flagged


class Recorded(MultiViewDetector):
    """A detector that keeps what it last computed of each view: after `fit`, what the threshold was set by."""

    def _surprises(self, abnormality, groups, tails):
        self.recorded = super()._surprises(abnormality, groups, tails)
        return self.recorded


class Views:
    """`MultiViewDetector`, and what it would be with fewer views."""

    def __init__(self, name, seed, **parameters):
        self.name = name
        self.detector = Recorded(random_state=seed, **parameters)

    def fit(self, train, reference):
        flows, y = reference
        self.detector.fit(train.payload, reference=ReferenceData(flows.payload, y))
        names = self.detector.view_names_
        self.variants = {self.name: names}
        if self.name == ALL:
            self.variants |= {f"without {view}": [name for name in names if name != view] for view in names}
            self.variants |= {f"{view} alone": [view] for view in names}
        self._set_offsets(self.detector.recorded)
        return self

    def _set_offsets(self, surprises):
        self.offsets = {
            name: conformal_threshold(scores, RATE) for name, scores in self._variants_of(surprises).items()
        }

    def _variants_of(self, surprises):
        names = self.detector.view_names_
        return {
            variant: self.detector._combined(surprises[:, [names.index(view) for view in views]])
            for variant, views in self.variants.items()
        }

    def scores(self, flows):
        return self._variants_of(self.detector.stream()._surprises(flows.payload)[0])

    def flagged_elsewhere(self, flows):
        """Return what is flagged of the later half, as fitted, and with tails and threshold of the earlier half."""
        table = in_time_order(flows.payload)
        later = np.arange(len(table)) >= len(table) // 2
        groups, views = services(table), self.detector._views
        seen = [view.observe(table, view.new_memory()).abnormality for view in views]
        there = copy.copy(self)
        there.detector = copy.copy(self.detector)
        tails = tuple(
            Tails.of(values[~later], groups[~later] if view.groups_by_service else None)
            for view, values in zip(views, seen, strict=True)
        )
        there.detector.calibrations_ = [Calibration("", 0.0, None, 0, tails=tails)]
        there.detector.active_calibration_ = 0
        surprises = there.detector._surprises(seen, groups, tails)
        there._set_offsets(surprises[~later])
        found = (
            self._variants_of(self.detector._surprises(seen, groups, self.detector._tails)),
            there._variants_of(surprises),
        )
        return {
            name: tuple(
                scores[name][later] < offsets[name]
                for scores, offsets in zip(found, (self.offsets, there.offsets), strict=True)
            )
            for name in self.variants
        }


class OneScore:
    """A detector of one score, whose threshold alone can be set anew."""

    def flagged_elsewhere(self, flows):
        flows = flows[np.argsort(flows.time_first, kind="stable")]
        later = np.arange(len(flows)) >= len(flows) // 2
        (scores,) = self.scores(flows).values()
        there = conformal_threshold(scores[~later], RATE)
        return {self.name: (scores[later] < self.offsets[self.name], scores[later] < there)}


class OnRows(OneScore):
    """`DOCIDSDetector` as it is, with its own threshold."""

    def __init__(self, name, seed, layout):
        self.name = name
        self.layout = layout
        self.detector = DOCIDSDetector(random_state=seed)

    def fit(self, train, reference):
        flows, y = reference
        self.detector.fit(train.rows(self.layout), reference=ReferenceData(flows.rows(self.layout), y))
        self.offsets = {self.name: self.detector.offset_}
        return self

    def scores(self, flows):
        return {self.name: self.detector.score_samples(flows.rows(self.layout))}


class OnNumbers(OneScore):
    """An outlier detector on numbers of each flow; blocks of time judged by the others set its threshold."""

    def __init__(self, name, numbers, detector):
        self.name = name
        self.numbers = numbers
        self.detector = detector

    def fit(self, train, reference):
        values, order = self.numbers(train), np.argsort(train.time_first, kind="stable")
        held_out = np.empty(len(train))
        for block in np.array_split(order, N_BLOCKS):
            others = clone(self.detector).fit(np.delete(values, block, axis=0))
            held_out[block] = others.score_samples(values[block])
        self.detector = clone(self.detector).fit(values)
        self.offsets = {self.name: conformal_threshold(held_out, RATE)}
        return self

    def scores(self, flows):
        return {self.name: self.detector.score_samples(self.numbers(flows))}


class AsItIs(BaseEstimator):
    """Whatever is larger is more abnormal."""

    def fit(self, X, y=None):
        return self

    def score_samples(self, X):
        return -X[:, 0]


class Nearest(BaseEstimator):
    """Distance to the nearest training flow, the sum over columns."""

    def fit(self, X, y=None):
        self.index_ = NearestNeighbors(n_neighbors=1, metric="manhattan").fit(X)
        return self

    def score_samples(self, X):
        return -self.index_.kneighbors(X)[0][:, 0]


def context_of(flows):
    return FlowContext().update(flows.payload.rows.records)


def channel_flows(flows, half_life):
    return context_of(flows)[f"channel_flows_{half_life}"].astype(np.float64)[:, None]


def payload_lengths(flows):
    return flows.packets.payload_lengths.astype(np.float64)


def statistics_and_context(flows):
    context = context_of(flows)
    columns = [context[name].astype(np.float64) for name in CONTEXT_COLUMNS]
    return np.column_stack([statistics_of(flows.payload), *columns])


def channels_of(table):
    """Return a number per flow for addresses, destination port and protocol."""
    addresses = [np.unique(table[name], return_inverse=True)[1] for name in ("src_ip", "dst_ip")]
    keys = np.column_stack([*addresses, table.dst_port, table.protocol])
    return np.unique(keys, axis=0, return_inverse=True)[1].ravel()


# The beacon score of RITA version 5: https://github.com/activecm/rita, analysis/beacons.go and default_config.hjson.
# Its day of 24 hours is the period that was recorded here, which is stretched to a day, or no beacon of minutes would
# fill six of its hours. Its score is of all flows of a channel, the later ones included; of channels, because here a
# host is asked for several services. Its modifiers (prevalence, first seen, threat lists) are left out.
DAY_S, N_HOURS = 86_400, 24
MIN_BEACON_TIMES = 4
MIN_INTERQUARTILE_RANGE = 10
MIN_DURATION_HOURS, IDEAL_HOURS = 6, 12
MIN_BIMODAL_HOURS, MODE_SENSITIVITY, N_OUTLYING_HOURS = 11, 0.05, 1


def beacon_scores(flows):
    """Return the score of the channel of each flow, 0 where it has too few different times."""
    table = flows.payload
    first, last = table.time_first.min(), table.time_first.max()
    times = (table.time_first - first) * (DAY_S / (last - first))
    channels = channels_of(table)
    scores = np.zeros(channels.max() + 1)
    for channel in range(len(scores)):
        rows = channels == channel
        scores[channel] = beacon_score(np.sort(times[rows].astype(np.int64)), table.bytes_forward[rows])
    return scores[channels][:, None]


def beacon_score(times, sizes):
    if len(np.unique(times)) < MIN_BEACON_TIMES:
        return 0.0
    intervals = np.diff(times)
    hours = np.histogram(times, N_HOURS, (0, DAY_S))[0]
    parts = (
        regularity(intervals[intervals > 0], 1.0),
        regularity(sizes, 0.0),
        duration_score(times, hours),
        max(flatness(hours), bimodality(hours)),
    )
    return round(float(np.mean(parts)), 3)


def regularity(values, default):
    """Return the mean of two scores: of Bowley's skewness, and of the median absolute deviation from the median."""
    ordered = np.sort(values)
    n_half, median = len(ordered) // 2, np.median(ordered)
    low, high = np.median(ordered[:n_half]), np.median(ordered[-n_half:])
    is_skewed = high - low >= MIN_INTERQUARTILE_RANGE and median not in (low, high)
    skewness = (low + high - 2 * median) / (high - low) if is_skewed else 0.0
    deviation = np.median(np.abs(ordered - median))
    steadiness = max(0.0, (median - deviation) / median) if median >= 1 else default
    return (1 - abs(skewness) + steadiness) / 2


def duration_score(times, hours):
    """Return the larger share: of the day between first and last flow, or of the ideal run of hours with flows."""
    if np.sum(hours > 0) < MIN_DURATION_HOURS:
        return 0.0
    runs = "".join("1" if hour else "0" for hour in [*hours, *hours]).split("0")
    longest = min(max(map(len, runs)), N_HOURS)
    return float(min(1.0, max((times[-1] - times[0]) / DAY_S, longest / IDEAL_HOURS)))


def flatness(hours):
    return float(max(0.0, 1 - np.std(hours) / np.mean(hours)))


def bimodality(hours):
    """Return the share of the hours with flows that have one of the two most common numbers of them."""
    busy = hours[hours > 0]
    if len(busy) < MIN_BIMODAL_HOURS:
        return 0.0
    numbers = np.sort(np.unique(busy // np.ceil(busy.max() * MODE_SENSITIVITY), return_counts=True)[1])
    return float(min(1.0, numbers[-2:].sum() / max(1, len(busy) - N_OUTLYING_HOURS)))


# By name: how to make it from a seed, and how many seeds make a difference worth the time.
DETECTORS = {
    ALL: (lambda seed: Views(ALL, seed), 5),
    "calibration=later": (lambda seed: Views("calibration=later", seed, calibration="later"), 3),
    ON_PACKETS: (lambda seed: OnRows(ON_PACKETS, seed, "packets"), 3),
    ON_PAYLOAD: (lambda seed: OnRows(ON_PAYLOAD, seed, "payload"), 3),
    **{
        name: (lambda seed, name=name, numbers=numbers: OnNumbers(name, numbers, AsItIs()), 1)
        for name, numbers in {
            "flows per channel, 60 s": functools.partial(channel_flows, half_life=60),
            "flows per channel, 600 s": functools.partial(channel_flows, half_life=600),
            "RITA beacon score": beacon_scores,
        }.items()
    },
    "1-NN on payload lengths": (lambda seed: OnNumbers("1-NN on payload lengths", payload_lengths, Nearest()), 1),
    "IsolationForest": (
        lambda seed: OnNumbers("IsolationForest", statistics_and_context, IsolationForest(random_state=seed)),
        3,
    ),
}
ON_SITES = (ALL, ON_PACKETS, ON_PAYLOAD, "flows per channel, 600 s", "1-NN on payload lengths", "IsolationForest")
CONTAMINATIONS = (0.01, 0.05, 0.1)


def studies():
    """Return, by study, its fits: (target, detector, number of seeds, share of attacks in training)."""
    return {
        "detectors": [("testbed", name, n_seeds, 0.0) for name, (_, n_seeds) in DETECTORS.items()],
        "sites": [(site, name, min(3, DETECTORS[name][1]), 0.0) for site in SITES for name in ON_SITES],
        "contamination": [
            ("testbed", name, 3, share)
            for share in CONTAMINATIONS
            for name in (ALL, ON_PACKETS, "1-NN on payload lengths", "IsolationForest")
        ],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def run(study, fit, seed, args):
    """Fit, score, and write the scores; do nothing if that was done before."""
    target, name, _, share = fit
    described = {
        "study": study, "part": args.part, "target": target, "detector": name, "seed": seed, "contamination": share,
    }  # fmt: skip
    path = args.results / f"{keyed(described)}.npz"
    if path.exists():
        return
    data = load(target, args.part, args.data)
    train = contaminated(data, share, seed) if share else data.train
    began = time.process_time()
    fitted = DETECTORS[name][0](seed).fit(train, data.reference)
    described["seconds"] = time.process_time() - began
    arrays = scored(fitted, data)
    # The sites have no validation part.
    if name in (ALL, ON_PACKETS) and args.part == "test" and not share and args.data.is_dir():
        arrays |= scored_elsewhere(fitted, target, args.data)
    write(path, described | {"offsets": fitted.offsets}, arrays)
    print(f"{study} {target} {name} {share} seed {seed}: {described['seconds']:.0f} CPU-s", flush=True)


def keyed(described):
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def write(path, described, arrays):
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, described=np.array(json.dumps(described)), **arrays)
    part.rename(path)


def scored(fitted, data):
    """Return the scores of normal flows alone, of each attack and of the normal flows beside it, and of channels."""
    arrays = {f"{name}|normal|": scores for name, scores in fitted.scores(data.normal).items()}
    start = data.normal.time_first.min()
    for kind, attack in data.attacks.items():
        flows = joined([data.normal, attack])
        is_attack = np.arange(len(flows)) >= len(data.normal)
        channels = channels_of(flows.payload)
        groups = {seconds: in_windows(channels, flows.time_first - start, seconds) for seconds in WINDOWS_S}
        for name, scores in fitted.scores(flows).items():
            arrays[f"{name}|beside|{kind}"], arrays[f"{name}|attack|{kind}"] = scores[~is_attack], scores[is_attack]
            for seconds in WINDOWS_S:
                others, attacked = by_group(groups[seconds], scores, is_attack)
                arrays[f"{name}|other channels {seconds}|{kind}"] = others
                arrays[f"{name}|attacked channels {seconds}|{kind}"] = attacked
    return arrays


def scored_elsewhere(fitted, target, folder):
    """Return what is flagged of the normal flows of the other networks."""
    return {
        f"{name}|elsewhere {way}|{other}": flagged
        for other in sorted({"testbed", *SITES} - {target})
        for name, pair in fitted.flagged_elsewhere(load(other, "test", folder).normal).items()
        for way, flagged in zip(WAYS, pair, strict=True)
    }


def in_windows(channels, times, seconds):
    """Return a number per flow for its channel and window."""
    windows = times // (seconds * 10**9)
    return np.unique(np.column_stack([channels, windows]), axis=0, return_inverse=True)[1].ravel()


def by_group(groups, scores, is_attack):
    """Return the lowest scores of groups: of those without a flow of the attack, and of those with one."""
    lowest = np.full(groups.max() + 1, np.inf)
    np.minimum.at(lowest, groups, scores)
    attacked = np.bincount(groups, is_attack) > 0
    return lowest[~attacked], lowest[attacked]


def measure_rows(args):
    """Write how far rows of bytes can tell an attack at all."""
    described = {"study": "rows", "part": args.part}
    path = args.results / f"{keyed(described)}.npz"
    if path.exists():
        return
    data = load("testbed", args.part, args.data)
    found = {layout: rows_alike(data, layout) for layout in ("packets", "payload")}
    write(path, described | {"found": found}, {})


def rows_alike(data, layout):
    """Return shares of rows that repeat a training row, and of attack rows with mostly normal nearest rows."""
    known = {row.tobytes() for row in data.train.rows(layout)}
    normal = data.normal.rows(layout)
    found = {"normal": {"repeats": repeating(normal, known)}}
    for kind, flows in data.attacks.items():
        rows = flows.rows(layout)
        X = np.concatenate([normal, rows]).astype(np.float32)
        nearest = NearestNeighbors(n_neighbors=6).fit(X).kneighbors(X[len(normal) :], return_distance=False)
        # Each row finds itself, if not always in the first place.
        is_self = nearest == np.arange(len(normal), len(X))[:, None]
        is_self[~is_self.any(axis=1), -1] = True
        n_normal = np.sum((nearest < len(normal)) & ~is_self, axis=1)
        found[kind] = {"repeats": repeating(rows, known), "among normal": float(np.mean(n_normal > 2))}
    return found


def repeating(rows, known):
    return float(np.mean([row.tobytes() in known for row in rows]))


def measure_cost(args, n_rounds=3):
    """Write what fits and scores cost, detectors taking turns."""
    described = {"study": "cost", "part": args.part}
    path = args.results / f"{keyed(described)}.npz"
    if path.exists():
        return
    data = load("testbed", args.part, args.data)
    without_bytes = [view for view in VIEWS if view != "bytes"]
    makers = {
        ON_PACKETS: DETECTORS[ON_PACKETS][0],
        ON_PAYLOAD: DETECTORS[ON_PAYLOAD][0],
        ALL: DETECTORS[ALL][0],
        f"{ALL}, without bytes": lambda seed: Views(ALL, seed, views=without_bytes),
    }
    found = {name: {"fit": [], "score": []} for name in makers}
    for seed in range(n_rounds):
        for name, make in makers.items():
            began = time.process_time()
            fitted = make(seed).fit(data.train, data.reference)
            ended = time.process_time()
            fitted.scores(data.normal)
            found[name]["fit"].append(ended - began)
            found[name]["score"].append((time.process_time() - ended) / len(data.normal))
    write(path, described | {"found": found}, {})


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def read(results):
    """Return what each fit left: its description, and its arrays by detector, level and kind."""
    fits = []
    for path in sorted(results.glob("*.npz")):
        with np.load(path) as file:
            arrays = {tuple(name.split("|")): file[name] for name in file.files if name != "described"}
            fits.append((json.loads(str(file["described"])), arrays))
    return sorted(fits, key=place_in_tables)


def place_in_tables(fit):
    described, _ = fit
    place = list(DETECTORS).index(described.get("detector", ALL))
    return place, described.get("contamination", 0), described.get("seed", 0)


def kinds_in(arrays):
    return list(dict.fromkeys(kind for _, level, kind in arrays if level == "attack"))


def names_in(arrays):
    return list(dict.fromkeys(name for name, *_ in arrays))


def measured(name, kind, arrays, offset):
    """Return the measures of one kind."""
    clean, beside, attack = (arrays[name, *key] for key in (("normal", ""), ("beside", kind), ("attack", kind)))
    curve = Ranking(np.repeat([False, True], [len(beside), len(attack)]), np.concatenate([beside, attack])).curve()
    found = {"ROC-AUC": roc_auc(curve), "average precision": average_precision(curve)}
    for rate in MAX_FPRS:
        found[f"recall at {100 * rate:g} %"] = recall_at_fpr(curve, rate)
        found[f"recall at {100 * rate:g} % of clean traffic"] = recall_at_clean(clean, attack, rate)
    found["recall, own threshold"] = float(np.mean(attack < offset))
    found["false alarms, own threshold"] = float(np.mean(beside < offset))
    found["false alarms, clean traffic"] = float(np.mean(clean < offset))
    for seconds in WINDOWS_S:
        channels = [arrays[name, f"{which} channels {seconds}", kind] for which in ("other", "attacked")]
        curve = Ranking(np.repeat([False, True], list(map(len, channels))), np.concatenate(channels)).curve()
        found[f"channels, {seconds} s"] = recall_at_fpr(curve, RATE)
    return found


def recall_at_clean(clean, attack, rate):
    """Return the recall at the threshold that flags at most a share of the traffic without attacks."""
    if not resolves(len(clean), rate):
        return float("nan")
    return float(np.mean(attack < np.sort(clean)[int(rate * len(clean) + 1e-9)]))


FLOW_MEASURES = (
    "ROC-AUC", "average precision",
    *(f"recall at {100 * rate:g} %{of}" for of in ("", " of clean traffic") for rate in MAX_FPRS),
)  # fmt: skip
OWN_MEASURES = ("recall, own threshold", "false alarms, own threshold", "false alarms, clean traffic")
CHANNEL_MEASURES = tuple(f"channels, {seconds} s" for seconds in WINDOWS_S)


class Results(dict):
    """Measures by (detector, kind), each a list over seeds; the mean over kinds of each seed under "mean"."""

    def add(self, described, arrays, chosen=lambda kind: True):
        for name in names_in(arrays):
            of_kinds = {
                kind: measured(name, kind, arrays, described["offsets"][name])
                for kind in kinds_in(arrays)
                if chosen(kind)
            }
            means = {
                key: float(np.mean([of[key] for of in of_kinds.values()])) for key in next(iter(of_kinds.values()))
            }
            for kind, of in {"mean": means, **of_kinds}.items():
                self.setdefault((name, kind), []).append(of)

    def cell(self, name, kind, measure):
        return spread([of[measure] for of in self[name, kind]])

    def table(self, measures, kind="mean"):
        names = [name for name, of in self if of == kind]
        rows = [[name, str(len(self[name, kind])), *(self.cell(name, kind, m) for m in measures)] for name in names]
        return table_of(["detector", "seeds", *measures], rows)

    def by_kind(self, measure, names):
        kinds = list(dict.fromkeys(kind for _, kind in self))
        return table_of(
            ["kind", *names], [[kind, *(self.cell(name, kind, measure) for name in names)] for kind in kinds]
        )


def spread(values):
    """Return the mean over seeds, with the lowest and the highest."""
    if np.isnan(values).any():
        return "-"
    if np.ptp(values) < 5e-4:
        return f"{np.mean(values):.3f}"
    return f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def table_of(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def is_own(kind):
    """Return whether an attack was recorded in the network of site A or the neighbouring one."""
    return kind.startswith("attack_")


def report(args):
    """Print the tables."""
    fits = [fit for fit in read(args.results) if fit[0]["part"] == args.part]
    seconds = sum(described.get("seconds", 0) for described, _ in fits)
    print(f"{len(fits)} files, {seconds / 3600:.1f} hours of processor time to train\n")
    report_detectors([fit for fit in fits if fit[0]["study"] == "detectors"])
    report_contamination([fit for fit in fits if fit[0]["study"] == "contamination"])
    for site in SITES:
        report_site(site, [fit for fit in fits if fit[0]["study"] == "sites" and fit[0]["target"] == site])
    report_incidents([fit for fit in fits if fit[0]["study"] in ("detectors", "sites")], args)
    report_elsewhere([fit for fit in fits if any(level.startswith("elsewhere") for _, level, _ in fit[1])])
    for described, _ in fits:
        if described["study"] == "rows":
            report_rows(described["found"])
        elif described["study"] == "cost":
            report_cost(described["found"])


def report_detectors(fits):
    found = Results()
    for described, arrays in fits:
        found.add(described, arrays)
    if not found:
        return
    print(f"### Testbed, mean over kinds\n\n{found.table(FLOW_MEASURES)}\n")
    print(f"### Testbed, at the detector's own threshold, asked for: {RATE}\n\n{found.table(OWN_MEASURES)}\n")
    print(f"### Testbed, channels: recall at 1 % of the others\n\n{found.table(CHANNEL_MEASURES)}\n")
    names = [name for name in dict.fromkeys(name for name, _ in found) if "without" not in name]
    for measure in ("recall at 1 %", "ROC-AUC", OWN_MEASURES[1]):
        print(f"{measure} by kind\n\n{found.by_kind(measure, names)}\n")


def report_contamination(fits):
    for share in CONTAMINATIONS:
        found = Results()
        for described, arrays in fits:
            if described["contamination"] == share:
                found.add(described, arrays)
        if found:
            print(f"### {share:.0%} attacks in training\n\n{found.table((*FLOW_MEASURES, *OWN_MEASURES))}\n")


def report_site(site, fits):
    for title, chosen in {"own attacks": is_own, "attacks recorded elsewhere": lambda kind: not is_own(kind)}.items():
        found = Results()
        for described, arrays in fits:
            if any(map(chosen, kinds_in(arrays))):
                found.add(described, arrays, chosen)
        if found:
            measures = ("ROC-AUC", "average precision", "recall at 1 %", *OWN_MEASURES, *CHANNEL_MEASURES)
            print(f"### Site {site}: {title}\n\n{found.table(measures)}\n")
            names = [name for name in dict.fromkeys(name for name, _ in found) if "without" not in name]
            for measure in ("ROC-AUC", "recall at 1 %"):
                print(f"{measure} by kind\n\n{found.by_kind(measure, names)}\n")


def report_incidents(fits, args):
    """Print how many incidents the false alarms of normal traffic are, at the detector's own threshold."""
    found, periods = {}, {}
    for described, arrays in fits:
        target = described["target"]
        table = load(target, args.part, args.data).normal.payload
        periods[target] = recorded_hours(table)
        for name in (name for name in names_in(arrays) if " alone" not in name):
            scores, threshold = arrays[name, "normal", ""], described["offsets"][name]
            of_levels = found.setdefault((target, name), {"flows": [], "channel": [], "host": []})
            of_levels["flows"].append(int(np.sum(scores < threshold)))
            for level in ("channel", "host"):
                of_levels[level].append(len(find_incidents(table, scores, threshold, level=level)))
    rows = [
        [target, f"{periods[target]:.2f}", name, *map(counted, of.values())]
        for (target, name), of in sorted(found.items(), key=lambda item: item[0][0])
    ]
    if rows:
        header = ["normal traffic of", "hours", "detector", "false alarms", "incidents by channel", "by host"]
        print(f"### Incidents of normal traffic, windows of an hour\n\n{table_of(header, rows)}\n")


def recorded_hours(table):
    """Return the time from the first flow to the last, without pauses of more than an hour in which none begins."""
    pauses = np.diff(np.sort(table.time_first)) / 3.6e12
    return float(pauses[pauses <= 1].sum())


def counted(numbers):
    """Return the mean number over seeds, with the lowest and the highest."""
    return f"{np.mean(numbers):.1f} ({min(numbers)}-{max(numbers)})" if len(set(numbers)) > 1 else str(numbers[0])


def report_elsewhere(fits):
    """Print which share of the later half of normal flows is flagged in other networks."""
    shares = {}
    for described, arrays in fits:
        for (name, level, other), flagged in arrays.items():
            if level.startswith("elsewhere") and " alone" not in name:
                key = name, described["target"], other
                shares.setdefault(key, {}).setdefault(level.partition(" ")[2], []).append(np.mean(flagged))
    rows = [[*key, *(spread(of[way]) for way in WAYS)] for key, of in sorted(shares.items())]
    if rows:
        print(
            f"### False alarms in other networks\n\n{table_of(['detector', 'trained on', 'tested on', *WAYS], rows)}\n"
        )


def report_rows(found):
    header = ["flows", *(f"{what}, {layout} rows" for layout in found for what in ("repeat training", "among normal"))]
    rows = [
        [
            kind,
            *(f"{of[kind][key]:.3f}" if key in of[kind] else "-" for of in found.values() for key in MEASURES_OF_ROWS),
        ]
        for kind in found["payload"]
    ]
    print(f"### Rows alike\n\n{table_of(header, rows)}\n")


MEASURES_OF_ROWS = ("repeats", "among normal")


def report_cost(found):
    base = found[ON_PACKETS]
    rows = [
        [
            name,
            f"{min(of['fit']):.1f}", f"{min(of['fit']) / min(base['fit']):.2f}",
            f"{min(of['score']) * 1e6:.0f}", f"{min(of['score']) / min(base['score']):.2f}",
        ]
        for name, of in found.items()
    ]  # fmt: skip
    print(f"### Cost\n\n{table_of(['detector', 'fit, CPU-s', 'ratio', 'score, CPU-µs per flow', 'ratio'], rows)}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=Path("views-results"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    parser.add_argument("--studies", nargs="*", help="which; default: all")
    parser.add_argument("--detectors", nargs="*", help="which; default: all")
    parser.add_argument("--seeds", nargs="*", type=int, default=range(5))
    parser.add_argument("--report", action="store_true", help="make the tables of what was measured")
    args = parser.parse_args()
    if args.report:
        report(args)
        return
    warnings.simplefilter("ignore")
    args.results.mkdir(exist_ok=True)
    for study in args.studies or (*studies(), "rows", "cost"):
        if study in ("rows", "cost"):
            {"rows": measure_rows, "cost": measure_cost}[study](args)
        # The attacks in training are those of the validation part, and the sites have no such part.
        elif study == "detectors" or args.part == "test":
            run_all(study, args)


def run_all(study, args):
    for fit in studies()[study]:
        target, name, n_seeds, _ = fit
        for seed in args.seeds:
            is_there = target == "testbed" or args.data.is_dir()
            if seed < n_seeds and is_there and (not args.detectors or name in args.detectors):
                run(study, fit, seed, args)


if __name__ == "__main__":
    main()
