"""The paper's experiment as one command: DOC-IDS beside its two baselines, Tables 2 to 4 and Figures 2 to 6.

    python examples/paper_experiment.py --dataset testbed --seeds 5 --output results
    python examples/paper_experiment.py --dataset cic-ids-2017 --folder CIC-IDS-2017 --reference USTC-TFC2016
    python examples/paper_experiment.py --dataset bos-2018 --folder BOS_2018 --reference USTC-TFC2016

``testbed`` comes with the package and brings its own reference. The others are as published; their reference is
USTC-TFC2016, or any folder with a capture per class. Detectors are trained on normal target traffic alone; attacks are
only scored. What the paper leaves open is in docs/paper.md: it does not say how its baselines were built and trained,
so they have their own defaults here, and DOC-IDS is shown with the paper's training settings and with this package's.

Written into the output folder: ``results.csv`` (one line per fit and attack) and the figures: error histograms, t-SNE
of input and of features, ROC and precision-recall curves, scores per attack. Figures are of the first seed.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.manifold import TSNE
from sklearn.metrics import PrecisionRecallDisplay
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import OneClassSVM
from sklearn.utils import Bunch

from sklearn_docids import (
    AutoencoderDetector,
    ConvAutoencoderDetector,
    DOCIDSDetector,
    ReferenceData,
    paper,
)
from sklearn_docids.datasets import (
    load_bos_2018,
    load_cic_ids_2017,
    load_class_folder,
    load_testbed,
    load_ustc_tfc2016,
)
from sklearn_docids.detectors import StatisticDetector
from sklearn_docids.metrics import attack_average_precision_score, attack_roc_auc_score

# The paper's Table 2: 20 classes of USTC-TFC2016, as many flows of each.
PAPER_REFERENCE_FLOWS = 5000
# One-class support vectors take memory and time by the square of the rows.
MOST_ROWS_OF_SVM = 5000
ALL, MACRO = "all attacks", "mean over attacks"
MEASURES = {
    "roc_auc": "ROC-AUC",
    "average_precision": "PR-AUC (average precision)",
    "roc_auc_by_service": "ROC-AUC against normal flows of the same services",
}
# With fewer normal flows of a service there is nothing to compare with.
FEWEST_NORMAL = 20
COLUMNS = (
    "detector", "seed", "attack", "n_attack", "n_normal", "roc_auc", "average_precision", "prevalence",
    "roc_auc_by_service", "fit_s",
)  # fmt: skip


def load(options):
    """Return training rows, test rows with their attacks, the reference, and a description."""
    sampler = paper.sampler(random_state=options.random_state)
    if options.dataset == "testbed":
        testbed = load_testbed(sampler=sampler)
        reference = Bunch(X=testbed.X_reference, y=testbed.y_reference)
        return Bunch(
            X_train=testbed.X_train,
            X_test=testbed.X_test,
            attack=testbed.attack,
            DESCR=testbed.DESCR,
        ), reference
    if options.folder is None or options.reference is None:
        raise SystemExit(
            f"--dataset {options.dataset} needs --folder and --reference: see docs/datasets.md"
        )
    settings = {
        "cache_folder": options.cache_folder,
        "random_state": options.random_state,
        "verbose": 1,
    }
    if options.dataset == "cic-ids-2017":
        data = load_cic_ids_2017(
            options.folder, labels=options.labels, attempted=options.attempted, **settings
        )
    else:
        data = load_bos_2018(options.folder, **settings)
    published = (Path(options.reference) / "Malware").is_dir()
    sampler.set_params(fields="no_addresses")  # as the loaders sample the target
    drawn = {
        "n_per_class": PAPER_REFERENCE_FLOWS,
        "sampler": sampler,
        "random_state": options.random_state,
    }
    if published:
        return data, load_ustc_tfc2016(
            options.reference, cache_folder=options.cache_folder, verbose=1, **drawn
        )
    return data, load_class_folder(options.reference, **drawn)


def thinned(data, n_flows, seed):
    """Return at most so many training rows, normal test rows, and rows of each attack."""
    rng = np.random.default_rng(seed)
    train = np.sort(rng.permutation(len(data.X_train))[:n_flows])
    test = [
        rng.permutation(np.flatnonzero(data.attack == name))[:n_flows]
        for name in np.unique(data.attack)
    ]
    test = np.sort(np.concatenate(test))
    return Bunch(
        X_train=data.X_train[train],
        X_test=data.X_test[test],
        attack=data.attack[test],
        DESCR=data.DESCR,
    )


def detectors(seed, max_epochs):
    """Return the detectors compared, and whether each takes a reference."""
    scaled = FunctionTransformer(lambda X: X / np.float32(255))
    own = {"max_epochs": max_epochs, "random_state": seed}
    return {
        "DOC-IDS, paper's settings": (paper.detector(**own), True),
        "DOC-IDS": (DOCIDSDetector(**own), True),
        "Autoencoder": (AutoencoderDetector(**own), False),
        "1D convolutional autoencoder": (ConvAutoencoderDetector(**own), False),
        "IsolationForest": (make_pipeline(scaled, IsolationForest(random_state=seed)), False),
        "OneClassSVM": (make_pipeline(scaled, OneClassSVM(gamma="scale")), False),
        "number of packets": (StatisticDetector("packets"), False),
    }


def fitted(name, detector, takes_reference, data, reference, seed):
    """Return a detector that has seen normal traffic, and the CPU seconds it took."""
    began = time.process_time()
    X = data.X_train
    if name == "OneClassSVM":
        X = X[np.random.default_rng(seed).permutation(len(X))[:MOST_ROWS_OF_SVM]]
    if takes_reference:
        detector.fit(X, reference=ReferenceData(reference.X, reference.y))
    else:
        detector.fit(X)
    return detector, time.process_time() - began


def services_of(X):
    """Return protocol and destination port of rows (Ethernet, IPv4 without options): the service that was asked."""
    return 65_536 * X[:, 23].astype(np.int64) + 256 * X[:, 36].astype(np.int64) + X[:, 37]


def measure(scores, attack, services):
    """Yield measures per attack, pooled ones first: flows, ROC-AUC, average precision, prevalence, ROC-AUC by service.

    The last compares attacks with normal flows of the same services alone. Where it is 0.5, it is the service that was
    found, not the attack; it is missing where nobody else uses the service.
    """
    normal = attack == ""
    for name in [ALL, *np.unique(attack[~normal])]:
        chosen = ~normal if name == ALL else attack == name
        rows = normal | chosen
        y = np.where(normal[rows], 1, -1)
        alike = chosen | (normal & np.isin(services, services[chosen]))
        by_service = np.nan
        if (alike & normal).sum() >= FEWEST_NORMAL:
            by_service = attack_roc_auc_score(np.where(normal[alike], 1, -1), scores[alike])
        n_attack = int(chosen.sum())
        yield (
            name, n_attack, int(normal.sum()), attack_roc_auc_score(y, scores[rows]),
            attack_average_precision_score(y, scores[rows]), n_attack / len(y), by_service,
        )  # fmt: skip


def run(options):
    """Fit and score everything; return result lines, and the detectors and scores of the first seed."""
    data, reference = load(options)
    if options.n_flows is not None:
        data = thinned(data, options.n_flows, options.random_state)
        reference = Bunch(**dict(zip(("X", "y"), _thin_reference(reference, options), strict=True)))
    print_tables(options, data, reference)
    results, first, services = [], {}, services_of(data.X_test)
    for seed in range(options.seeds):
        for name, (detector, takes_reference) in detectors(seed, options.max_epochs).items():
            detector, seconds = fitted(name, detector, takes_reference, data, reference, seed)
            scores = detector.score_samples(data.X_test)
            for attack, *values in measure(scores, data.attack, services):
                results.append(
                    dict(zip(COLUMNS, (name, seed, attack, *values, seconds), strict=True))
                )
            print(
                f"seed {seed}, {name}: ROC-AUC {results[-len(set(data.attack))]['roc_auc']:.3f}, {seconds:.0f} CPU-s"
            )
            if seed == 0:
                first[name] = detector, scores
    return data, reference, results, first


def _thin_reference(reference, options):
    """Return at most so many rows of each class as there are target rows."""
    rng = np.random.default_rng(options.random_state)
    rows = [
        rng.permutation(np.flatnonzero(reference.y == name))[: options.n_flows]
        for name in np.unique(reference.y)
    ]
    rows = np.sort(np.concatenate(rows))
    return reference.X[rows], reference.y[rows]


def print_tables(options, data, reference):
    """Print what was sampled, beside the numbers of the paper where it has them."""
    print("\nTable 2, reference: flows here (paper: 20 classes of USTC-TFC2016, 5,000 flows each)")
    for name, count in zip(*np.unique(reference.y, return_counts=True), strict=True):
        print(f"  {name}: {count}")
    table = {"bos-2018": "Table 3", "cic-ids-2017": "Table 4"}.get(options.dataset, "Target")
    print(f"\n{table}, target: {data.DESCR}")
    print(f"Used: {len(data.X_train)} training flows, {len(data.X_test)} test flows\n")


def spread(values):
    """Return mean and range; a dash where there is nothing to measure."""
    if not len(values) or not np.isfinite(values).all():
        return "-"
    return f"{np.mean(values):.3f}" + (
        f" ({np.min(values):.3f}-{np.max(values):.3f})" if len(values) > 1 else ""
    )


def print_results(results):
    """Print a table per measure: a row per attack, a column per detector, mean and range over the seeds."""
    names = list(dict.fromkeys(line["detector"] for line in results))
    attacks = list(dict.fromkeys(line["attack"] for line in results))
    described = {
        line["attack"]: f" ({line['n_attack']}; {line['prevalence']:.1%})" for line in results
    }
    seeds = sorted({line["seed"] for line in results})
    for measured, title in MEASURES.items():
        print(f"\n{title}{', mean over seeds (lowest-highest)' if len(seeds) > 1 else ''}\n")
        print("| attack (flows; share of the flows scored with it) | " + " | ".join(names) + " |")
        print("|---" * (len(names) + 1) + "|")
        table = {
            (line["detector"], line["seed"], line["attack"]): line[measured] for line in results
        }
        for attack in [*attacks, MACRO]:
            averaged = attacks[1:] if attack == MACRO else [attack]
            cells = []
            for name in names:
                by_seed = np.array(
                    [[table[name, seed, each] for each in averaged] for seed in seeds]
                )
                # A service that nobody else uses is missing in the mean, for all detectors alike.
                kept = by_seed[:, np.isfinite(by_seed).all(axis=0)] if attack == MACRO else by_seed
                cells.append(spread(kept.mean(axis=1) if kept.size else []))
            print(f"| {attack}{described.get(attack, '')} | " + " | ".join(cells) + " |")


def write_results(path, results):
    """Write all lines."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(results)


def draw(folder, data, first, n_embedded):
    """Write the figures, all of the first seed."""
    from matplotlib.figure import Figure

    from sklearn_docids.plotting import RocDisplay, ScoreHistogramDisplay

    y = np.where(data.attack == "", 1, -1)
    learned = {
        name: pair for name, pair in first.items() if hasattr(pair[0], "reconstruction_error")
    }
    figure = Figure(figsize=(4.2 * len(learned), 3.6), layout="constrained")
    for axes, (name, (detector, scores)) in zip(
        figure.subplots(1, len(learned)), learned.items(), strict=True
    ):
        ScoreHistogramDisplay.from_predictions(y, scores, threshold=detector.offset_, ax=axes)
        axes.set_title(name)
    figure.savefig(folder / "figure2_error_histograms.png", dpi=110)

    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(len(data.X_test))[:n_embedded])
    attack = data.attack[rows]
    draw_embedding(
        folder / "figure3_tsne_input.png", data.X_test[rows] / 255, attack, "t-SNE of the input"
    )
    features = first["DOC-IDS"][0].embed(data.X_test[rows])
    draw_embedding(
        folder / "figure4_tsne_features.png", features, attack, "t-SNE of DOC-IDS's features g"
    )

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (_, scores) in first.items():
        RocDisplay.from_predictions(y, scores, name=name, ax=left)
        PrecisionRecallDisplay.from_predictions(y == -1, -scores, name=name, ax=right)
    left.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    right.axhline(np.mean(y == -1), color="grey", linestyle=":", linewidth=1)
    right.set(xlabel="recall of attacks", ylabel="precision")
    right.legend(loc="upper right", fontsize="small")
    left.legend(loc="lower right", fontsize="small")
    left.set_title("ROC: attacks among normal flows")
    right.set_title("Precision and recall; dotted: guessing")
    figure.savefig(folder / "figure5_roc_pr.png", dpi=110)
    draw_by_attack(folder / "figure6_scores_by_attack.png", data.attack, learned)


def draw_embedding(path, X, attack, title):
    """Write a t-SNE map, a colour per attack."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.6), layout="constrained")
    axes = figure.subplots()
    places = TSNE(perplexity=min(30, (len(X) - 1) / 3), random_state=0).fit_transform(
        np.asarray(X, np.float32)
    )
    names = ["", *sorted(set(attack) - {""})]
    for number, name in enumerate(names):
        chosen = attack == name
        color = "lightgrey" if name == "" else colormaps["tab20"](number % 20)
        axes.scatter(*places[chosen].T, s=8, color=color, label=name or "normal", linewidths=0)
    axes.set(title=title, xticks=[], yticks=[])
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside right upper", markerscale=2.5, frameon=False
    )
    figure.savefig(path, dpi=110)


def draw_by_attack(path, attack, learned):
    """Write boxes of the reconstruction error, normal traffic first, with a line at its median."""
    from matplotlib.figure import Figure

    from sklearn_docids.plotting import ScoreByClassDisplay

    figure = Figure(
        figsize=(4.4 * len(learned), 0.32 * len(set(attack)) + 1.6), layout="constrained"
    )
    for axes, (name, (_, scores)) in zip(
        figure.subplots(1, len(learned)), learned.items(), strict=True
    ):
        ScoreByClassDisplay.from_predictions(attack, scores, ax=axes)
        axes.axvline(np.median(-scores[attack == ""]), color="grey", linestyle=":", linewidth=1)
        axes.set(title=name, xlabel="reconstruction error")
    figure.savefig(path, dpi=110)


def parsed(arguments):
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dataset", choices=("testbed", "cic-ids-2017", "bos-2018"), default="testbed"
    )
    parser.add_argument("--folder", help="folder of the data set, as published")
    parser.add_argument("--reference", help="folder of USTC-TFC2016, or with a capture per class")
    parser.add_argument("--cache-folder", help="folder for sampled flows, used again next time")
    parser.add_argument(
        "--labels", choices=("corrected", "paper"), default="paper", help="of CIC-IDS-2017"
    )
    parser.add_argument(
        "--attempted",
        choices=("ignore", "benign", "attack"),
        default="ignore",
        help="with corrected labels",
    )
    parser.add_argument("--seeds", type=int, default=1, help="fits of each detector")
    parser.add_argument(
        "--max-epochs", type=lambda text: text if text == "auto" else int(text), default="auto"
    )
    parser.add_argument("--n-flows", type=int, help="most flows of each part and attack")
    parser.add_argument("--n-embedded", type=int, default=2000, help="flows in the t-SNE maps")
    parser.add_argument("--random-state", type=int, default=0, help="of addresses and drawing")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("paper-experiment"),
        help="folder for figures and results",
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the experiment; return the result lines."""
    options = parsed(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    data, _, results, first = run(options)
    print_results(results)
    write_results(options.output / "results.csv", results)
    try:
        draw(options.output, data, first, options.n_embedded)
    except ImportError:
        print("\nNo figures: matplotlib is not installed (pip install 'sklearn-docids[plot]').")
    else:
        print(f"\nFigures and results: {options.output}")
    return results


if __name__ == "__main__":
    main()
