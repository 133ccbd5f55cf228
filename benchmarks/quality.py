"""How well detectors find attacks: all of them on the testbed and, where present, on two real networks.

Every fit leaves a file of scores in the results folder as it ends, and is not repeated: the command can be stopped and
started again, and run for several studies at a time. ``--report`` prints tables of all of them; docs/quality.csv holds
their figures, and docs/benchmarks.md says what they show.

    OMP_NUM_THREADS=1 python benchmarks/quality.py --results quality-results
    python benchmarks/quality.py --results quality-results --report

Detectors train on normal flows of the target's training part. Nothing here is tuned on the test part: the defaults were
chosen with benchmarks/defaults.py, on the validation part.
"""

import argparse
import hashlib
import json
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import betabinom
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import OneClassSVM
from sklearn.utils import Bunch

from sklearn_docids import (
    AutoencoderDetector,
    ConvAutoencoderDetector,
    DOCFeatures,
    DOCIDSDetector,
    FlowSampler,
    ReferenceData,
    paper,
)
from sklearn_docids.aggregation import FlowAggregator
from sklearn_docids.datasets import load_testbed
from sklearn_docids.detectors import NearestNeighborDetector, StatisticDetector
from sklearn_docids.evaluation import Evaluation, Scored, fit_clone, score_flows, score_groups

SITES = {"A": "targetA_windows_domain", "B": "targetB_smart_speaker"}
OURS, RECONSTRUCTION, PAPER = "DOC-IDS", "DOC-IDS, reconstruction error", "DOC-IDS, paper's settings"
POLICIES = ("raw", "paper", "portable")
# The testbed's periods last four minutes; the captures of A are every other minute of theirs.
WINDOW_S = 60.0
RATE = 0.01
ONE_PACKET = ", one packet"


def is_scan(attack):
    return "scan" in attack or attack.endswith(ONE_PACKET)


def is_own(attack):
    """Return whether an attack on A was recorded in its network or the neighbouring one."""
    return attack.startswith("attack_")


# Attacks that are averaged together: those from other networks prove no detection, and scans hide the rest.
GROUPS = {
    "testbed": {"all kinds": lambda attack: True, "without the port scan": lambda attack: not is_scan(attack)},
    **{
        site: {
            "attacks in its own and the neighbouring network": is_own,
            "attacks recorded elsewhere": lambda attack: not is_own(attack) and not is_scan(attack),
            "scans and flows of one packet, recorded elsewhere": is_scan,
        }
        for site in SITES
    },
}


def to_unit(X):
    return X / np.float32(255)


def scaled(detector):
    return make_pipeline(FunctionTransformer(to_unit), detector)


def cheap_detectors():
    return {
        "Autoencoder": AutoencoderDetector(),
        "IsolationForest": scaled(IsolationForest()),
        "OneClassSVM": scaled(OneClassSVM(gamma="scale", nu=0.01)),
        "1-NN on bytes": NearestNeighborDetector(),
        **{f"statistic: {name}": StatisticDetector(name) for name in ("packets", "bytes", "ttl")},
    }


def all_detectors(memory):
    def doc(classifier):  # both classifiers stand behind the same fit
        return make_pipeline(DOCFeatures(), classifier, memory=memory)

    return {
        OURS: DOCIDSDetector(),
        **cheap_detectors(),
        "1D convolutional autoencoder": ConvAutoencoderDetector(),
        "DOC + OneClassSVM": doc(OneClassSVM(gamma="scale", nu=0.01)),
        "DOC + nearest of 40": doc(NearestNeighborDetector(n_templates=40)),
        PAPER: paper.detector(),
    }


def studies(memory):
    """Return, by study, its fits: (target, detector, estimator, field policy, seeds, options)."""
    own, five, three = "no_addresses", range(5), range(3)
    ours = DOCIDSDetector()
    cheap = cheap_detectors()
    of_target = {
        target: [
            (target, name, detector, "paper" if name == PAPER else own, five, {})
            for name, detector in all_detectors(memory).items()
        ]
        for target in ("testbed", *SITES)
    }
    return {
        **{f"detectors-{target}": fits for target, fits in of_target.items()},
        "policies": [
            (target, name, detector, policy, three, {})
            for target in ("testbed", *SITES)
            for policy in POLICIES
            for name, detector in {OURS: ours, **cheap}.items()
        ],
        "losses": [
            ("testbed", f"lambda_{loss}=0", DOCIDSDetector(**{f"lambda_{loss}": 0.0}), own, three, {})
            for loss in ("descriptiveness", "compactness", "reconstruction")
        ],
        "false-alarms": [
            (target, f"{OURS}, false_alarm_rate={RATE}", DOCIDSDetector(false_alarm_rate=RATE), own, five, {})
            for target in ("testbed", "B")
        ],
        "contamination": [
            ("testbed", name, detector, own, three, {"contamination": share})
            for share in (0.01, 0.05, 0.1, 0.2)
            for name, detector in {OURS: ours, **cheap}.items()
        ],
        "target-size": [
            ("testbed", name, detector, own, three, {"n_train": n})
            for n in (100, 300, 1000, 3000)
            for name, detector in {OURS: ours, **cheap}.items()
        ],
        "bytes": [
            ("testbed", OURS, ours, own, range(1), {"n_packets": n, "n_bytes": n_bytes})
            for n in (1, 2, 4, 8)
            for n_bytes in (40, 80, 160)
        ],
    }


def load(target, fields, seed, options, folder):
    """Return training rows, reference, normal test flows, flows of each attack, and normal flows to calibrate with."""
    sizes = {name: options[name] for name in ("n_packets", "n_bytes") if name in options}
    sampler = FlowSampler(fields=fields, random_state=seed, **sizes)
    data = load_office(sampler) if target == "testbed" else load_site(sampler, target, folder)
    rng = np.random.default_rng(seed)
    if "n_train" in options:
        data.X_train = data.X_train[np.sort(rng.permutation(len(data.X_train))[: options["n_train"]])]
    if options.get("contamination"):
        # Abnormal flows of the validation period instead of normal ones of the training period.
        n = round(options["contamination"] * len(data.X_train))
        kept = data.X_train[np.sort(rng.permutation(len(data.X_train))[n:])]
        data.X_train = np.concatenate([kept, data.X_dirty[rng.permutation(len(data.X_dirty))[:n]]])
    return data


def load_office(sampler):
    testbed = load_testbed(sampler=sampler)
    kinds = np.unique(testbed.attack[testbed.attack != ""])
    return Bunch(
        X_train=testbed.X_train,
        X_dirty=testbed.X_validation[testbed.attack_validation != ""],
        reference=ReferenceData(testbed.X_reference, testbed.y_reference),
        normal=testbed.flows_test[testbed.attack == ""],
        attacks={str(kind): testbed.flows_test[testbed.attack == kind] for kind in kinds},
        calibration=testbed.flows_validation[testbed.attack_validation == ""],
    )


def load_site(sampler, target, folder):
    place = folder / SITES[target]
    classes = sorted((folder / "reference_exact").glob("*.pcap"))
    X_reference, y_reference, _ = sampler.sample(classes, [path.stem for path in classes])
    paths = [*sorted(place.glob("attack_*.pcap")), *sorted((folder / "attacks_crosslab").glob("*.pcap"))]
    return Bunch(
        X_train=sampler.fit_transform(place / "normal_train.pcap"),
        reference=ReferenceData(X_reference, y_reference),
        normal=sampler.flows(place / "normal_test.pcap"),
        attacks={path.stem: sampler.flows(path) for path in paths},
        calibration=None,
    )


class Reconstruction:
    """A fitted DOC-IDS that scores by the paper's score; its verdicts stay those of the detector."""

    def __init__(self, detector):
        self.detector = detector
        self.predict = detector.predict

    def score_samples(self, X):
        return -self.detector.reconstruction_error(X)


def run(fit, seed, results, folder):
    """Fit, score, and write the scores; do nothing if that was done before."""
    study, target, name, detector, fields, options = fit
    described = {"study": study, "target": target, "detector": name, "fields": fields, "seed": seed, **options}
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    path = results / f"{key}.npz"
    if path.exists():
        return
    data = load(target, fields, seed, options, folder)
    began = time.process_time()
    fitted = fit_clone(detector, data.X_train, reference=data.reference, seed=seed)
    seconds = time.process_time() - began
    scored = {"flow": score_flows(fitted, data.normal, data.attacks)}
    if name == OURS and study.startswith("detectors"):
        scored["flow, reconstruction"] = score_flows(Reconstruction(fitted), data.normal, data.attacks)
    if study in ("detectors-testbed", "detectors-A"):
        for level in ("channel", "host"):
            scored[level] = score_level(fitted, data, level)
    arrays = {}
    for level, of_level in scored.items():
        arrays[f"{level}|normal"] = of_level.normal
        for attack in of_level.attacks:
            arrays[f"{level}|attack|{attack}"] = of_level.attacks[attack]
        if of_level.flagged_normal is not None:
            arrays[f"{level}|flagged"] = of_level.flagged_normal
            for attack in of_level.attacks:
                arrays[f"{level}|flagged|{attack}"] = of_level.flagged_attacks[attack]
    for attack, flows in data.attacks.items():
        arrays[f"one packet|{attack}"] = flows.packets_forward + flows.packets_backward == 1
    if study == "false-alarms":
        for other in ("testbed", *SITES):
            if other != target and (other == "testbed" or folder.is_dir()):
                X = load(other, fields, seed, {}, folder).normal.X
                arrays[f"elsewhere|{other}"] = fitted.predict(X) == -1
    arrays["described"] = np.array(json.dumps({**described, "n_train": len(data.X_train), "seconds": seconds}))
    np.savez_compressed(results / f"{key}.part.npz", **arrays)
    (results / f"{key}.part.npz").rename(path)
    print(f"{study} {target} {name} {fields} {options} seed {seed}: {seconds:.0f} CPU-s", flush=True)


def score_level(fitted, data, level):
    """Return scores of channels or hosts, calibrated with normal flows that are neither trained on nor tested with."""
    calibration, normal = (data.calibration, data.normal) if data.calibration is not None else halves(data.normal)
    # Of hosts there are too few for a threshold, and of channels, where half of the test flows must calibrate.
    rate = RATE if data.calibration is not None and level == "channel" else None
    aggregator = FlowAggregator(level, window=WINDOW_S, false_alarm_rate=rate)
    aggregator.fit(calibration, fitted.score_samples(calibration.X))
    return score_groups(fitted, aggregator, normal, data.attacks)


def halves(flows):
    """Return the flows of the first and of the second half of the time."""
    is_first = flows.time_first < np.median(flows.time_first)
    return flows[is_first], flows[~is_first]


def read(results):
    """Return what each fit left: its description, and its arrays by level."""
    fits = []
    for path in sorted(results.glob("*.npz")):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        fits.append((json.loads(str(arrays.pop("described"))), arrays))
    return sorted(fits, key=lambda fit: place_in_tables(fit[0]))


def place_in_tables(described):
    options = [described.get(name, 0) for name in ("contamination", "n_train", "n_packets", "n_bytes")]
    return described["detector"] != OURS, described["detector"], described["fields"], options, described["seed"]


def scored_at(arrays, level, seconds, in_group):
    """Return the scores of a fit at a level for the attacks of a group, or None."""
    scores, flagged = {}, {}
    has_threshold = f"{level}|flagged" in arrays
    for name in [name for name in arrays if name.startswith(f"{level}|attack|")]:
        attack = name.split("|")[2]
        for part, rows in parts_of(attack, arrays, level).items():
            if in_group(part) and rows.any():
                scores[part] = arrays[name][rows]
                if has_threshold:
                    flagged[part] = arrays[f"{level}|flagged|{attack}"][rows]
    if not scores:
        return None
    if not has_threshold:
        return Scored(arrays[f"{level}|normal"], scores, fit_seconds=seconds)
    return Scored(arrays[f"{level}|normal"], scores, arrays[f"{level}|flagged"], flagged, seconds)


def parts_of(attack, arrays, level):
    """Return which rows of an attack are flows of more packets, and which are flows of one."""
    if not level.startswith("flow"):
        return {attack: np.ones(len(arrays[f"{level}|attack|{attack}"]), bool)}
    one_packet = arrays[f"one packet|{attack}"]
    return {attack: ~one_packet, attack + ONE_PACKET: one_packet}


def collected(fits, in_group, level="flow", n_resamples=200, name_of=lambda described: described["detector"], **chosen):
    """Return an evaluation of the fits whose description has the chosen values, by the attacks of a group."""
    found = Evaluation()
    for described, arrays in fits:
        if any(described.get(key) != value for key, value in chosen.items()):
            continue
        scored = scored_at(arrays, level, described["seconds"], in_group)
        if scored is not None:
            found.add(name_of(described), described["seed"], scored, level=level, n_resamples=n_resamples)
        other = scored_at(arrays, f"{level}, reconstruction", described["seconds"], in_group)
        if other is not None:
            found.add(RECONSTRUCTION, described["seed"], other, n_resamples=n_resamples)
    return found


def summary(found, n_digits=3):
    """Return the means over attacks as a Markdown table, a line per detector."""
    columns = ("roc_auc", "average_precision", "recall_at_fpr_0_01", "recall_at_fpr_0_001", "tpr", "fpr")
    lines = ["| detector | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name in dict.fromkeys(row["detector"] for row in found.rows):
        cells = []
        for column in columns:
            values = found.values(name, column)
            one = len(values) == 1 or np.ptp(values) < 5e-4
            spread = "" if one else f" ({values.min():.{n_digits}f}-{values.max():.{n_digits}f})"
            cells.append("-" if np.isnan(values).any() else f"{values.mean():.{n_digits}f}{spread}")
        lines.append(f"| {name} | {len(found.values(name, 'roc_auc'))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def leads(found):
    """Return by how much the default is ahead of each other detector, with intervals."""
    lines = ["| DOC-IDS ahead of | ROC-AUC | average precision |", "|---|---|---|"]
    for name in dict.fromkeys(row["detector"] for row in found.rows):
        if name != OURS:
            cells = []
            for measure in ("roc_auc", "average_precision"):
                mean, low, high = found.difference(OURS, name, measure=measure)
                cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(results):
    """Print the tables."""
    fits = read(results)
    seconds = sum(described["seconds"] for described, _ in fits)
    print(f"{len(fits)} fits, {seconds / 3600:.1f} hours of processor time to train\n")
    for target, groups in GROUPS.items():
        for level in ("flow", "channel", "host"):
            for group, in_group in groups.items():
                found = collected(fits, in_group, level, study=f"detectors-{target}")
                if found.rows:
                    print(f"### {target}, {level}s: {group}\n\n{summary(found)}\n\n{leads(found)}\n")
                    for measure in ("roc_auc", "recall_at_fpr_0_01"):
                        print(f"{measure} by attack\n\n{found.table(measure)}\n")
    for study in ("policies", "losses", "contamination", "target-size", "bytes"):
        for target, groups in GROUPS.items():
            for group, in_group in groups.items():
                chosen = {"study": study, "target": target}
                found = collected(fits, in_group, n_resamples=0, name_of=described_by(study), **chosen)
                if found.rows:
                    print(f"### {study}, {target}: {group}\n\n{summary(found)}\n")
    report_false_alarms(fits)


def described_by(study):
    """Return how fits of a study are called in its table."""
    options = {"contamination": ("contamination",), "target-size": ("n_train",), "bytes": ("n_packets", "n_bytes")}
    shown = ("fields",) if study == "policies" else options.get(study, ())
    return lambda described: ", ".join([described["detector"], *(f"{name} {described[name]}" for name in shown)])


def report_false_alarms(fits):
    """Print which share of new normal flows the conformal threshold flags, here and on other sites."""
    print(f"### false alarms, asked for: {RATE}\n\n| trained on | tested on | seeds | flagged | band | inside |")
    print("|---|---|---|---|---|---|")
    shares = {}
    for described, arrays in fits:
        if described["study"] == "false-alarms":
            n_held_out = round(0.2 * described["n_train"])
            k = int(RATE * (n_held_out + 1) + 1e-9)
            n = len(arrays["flow|flagged"])
            low, high = betabinom(n, k, n_held_out + 1 - k).ppf([0.025, 0.975]) / n
            tested = {described["target"]: (arrays["flow|flagged"], f"{low:.4f}-{high:.4f}", low, high)}
            for name in arrays:
                if name.startswith("elsewhere|"):
                    tested[name.partition("|")[2]] = (arrays[name], "-", np.nan, np.nan)
            for site, (flagged, *bounds) in tested.items():
                shares.setdefault((described["target"], site), []).append((np.mean(flagged), *bounds))
    for (trained, tested), values in shares.items():
        rates = [share for share, *_ in values]
        inside = "-" if trained != tested else f"{sum(low <= s <= high for s, _, low, high in values)}"
        spread = f"{np.mean(rates):.4f} ({min(rates):.4f}-{max(rates):.4f})"
        print(f"| {trained} | {tested} | {len(values)} | {spread} | {values[0][1]} | {inside} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=Path("quality-results"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--studies", nargs="*", help="which; default: all")
    parser.add_argument("--report", action="store_true", help="make the tables of what was measured")
    args = parser.parse_args()
    if args.report:
        report(args.results)
        return
    warnings.simplefilter("ignore")
    args.results.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as memory:
        for study, fits in studies(memory).items():
            if args.studies and study not in args.studies:
                continue
            for seed in range(5):
                for target, name, detector, fields, seeds, options in fits:
                    if seed in seeds and (target == "testbed" or args.data.is_dir()):
                        run((study, target, name, detector, fields, options), seed, args.results, args.data)


if __name__ == "__main__":
    main()
