# SPDX-License-Identifier: BSD-3-Clause
"""Captures and searches in other processes: joblib's own, and a Dask cluster of separate ones."""

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from typing import NamedTuple

import joblib
import numpy as np
import pytest
from captures import pcap, tcp, udp
from conftest import ROOT
from sklearn.model_selection import GridSearchCV

import sklearn_docids  # torch only where a detector is: workers import this module
from sklearn_docids import CaptureError, CaptureWarning, FlowSampler, _running
from sklearn_docids.capture import FlowTable
from sklearn_docids.capture.shards import mapped_array
from sklearn_docids.cli import _inputs, main

MOST_BYTES = 10_000  # of a task, and of what comes back
LOCALHOST = "tcp://127.0.0.1"


def quietly(function, *arguments, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptureWarning)
        return function(*arguments, **settings)


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Return captures of which the third is cut, the fourth holds no flow, and the fifth is none."""
    folder = tmp_path_factory.mktemp("captures")
    packets = [
        [p for k in range(1, 40) for p in (udp(sport=n * 100 + k), tcp(sport=k, payload=b"x" * n))] for n in (1, 2)
    ]
    contents = [*map(pcap, packets), pcap([udp(), udp()])[:-5], pcap([]), b"nothing"]
    for number, content in enumerate(contents):
        (folder / f"{number}.pcap").write_bytes(content)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def expected(days):
    return quietly(FlowSampler(rotated=False).flows, days)


def assert_same(flows, expected):
    for name in ("X", "records", "kept_bytes", "payload_lengths"):
        same = np.asarray(getattr(flows.rows, name)).tobytes() == getattr(expected.rows, name).tobytes()
        assert same, name
    assert (flows.captures, flows.counters, flows.ignored) == (expected.captures, expected.counters, expected.ignored)


def sampled(sampler, captures, method, out):
    """Return flows, in one of the ways in which a sampler gives them."""
    if method == "flows":
        return sampler.flows(captures)
    sampler.write(captures, out, shards=None if method == "write" else method)
    return FlowTable.load(out)


# Processes of this machine.


@pytest.fixture
def processes():
    with joblib.parallel_config("loky", n_jobs=2):
        yield


@pytest.mark.parametrize("method", ["flows", "write", "npy", "parquet"])
@pytest.mark.parametrize("rotated", [False, True])
def test_processes_give_what_threads_give(days, expected, processes, tmp_path, method, rotated, monkeypatch):
    monkeypatch.chdir(days[0].parent)  # the workers are elsewhere
    sampler = FlowSampler(rotated=rotated)
    names = [path.name for path in days]
    with pytest.warns(CaptureWarning) as caught:
        flows = sampled(sampler, names, method, tmp_path / "out")
    messages = sorted(str(warning.message) for warning in caught)
    assert [message.split(":")[0] for message in messages] == ["2.pcap", "4.pcap"]
    assert {warning.filename for warning in caught} == {__file__}
    flows.captures = [str(days[0].parent / name) for name in flows.captures]
    assert_same(flows, expected if not rotated or method in ("npy", "parquet") else quietly(sampler.flows, days))


def test_labels_and_groups_come_from_processes_too(days, processes):
    sampler = FlowSampler(output="flows")
    flows, y, groups = sampler.sample(days[:2], ["a", "b"])
    assert (y == np.array(["a", "b"])[groups]).all()
    assert len(flows) == len(y) == len(FlowSampler().flows(days[0])) + len(FlowSampler().flows(days[1]))


def test_nothing_is_left_where_processes_left_flows(days, processes, tmp_path, monkeypatch):
    monkeypatch.setenv("JOBLIB_TEMP_FOLDER", str(tmp_path))
    assert len(FlowSampler().transform(days[:2])) > 0
    assert [name for name in os.listdir(tmp_path) if name.startswith(".docids")] == []


def test_an_error_of_a_process_is_the_caller_s(days, processes, tmp_path):
    with pytest.raises(CaptureError, match=r"4.pcap: not a capture") as raised:
        FlowSampler(on_error="raise").write([days[0], days[4]], tmp_path / "out", shards="npy")
    assert raised.value.capture == str(days[4])
    with pytest.raises(FileNotFoundError, match=rf"\(on {socket.gethostname()}\): '.*gone.pcap'"):
        FlowSampler().flows([days[0], tmp_path / "gone.pcap"])


def test_work_of_a_process_that_was_killed_is_done_again(processes, tmp_path):
    def dies_at_first(flag, stopped):
        with contextlib.suppress(FileNotFoundError):
            os.remove(flag)
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    (tmp_path / "flag").touch()
    flags = [(str(tmp_path / name),) for name in ("a", "flag", "b")]
    assert _running.run_all(dies_at_first, flags, None) == ["done"] * 3


def test_a_call_that_kills_each_process_is_an_error(processes):
    with pytest.raises(ChildProcessError, match="a worker died, and another one when its work was done again: "):
        _running.run_all(lambda stopped: os.kill(os.getpid(), signal.SIGKILL), [()], None)


def test_shards_of_processes_that_died_are_named(days, tmp_path, monkeypatch):
    def dies_with_the_second(function, arguments, n_jobs):
        if function.__name__ == "write_shard":
            function(*arguments[0], lambda: False)
            raise ChildProcessError("a worker died")
        return _running.run_all(function, arguments, n_jobs)

    monkeypatch.setattr("sklearn_docids._sampler.run_all", dies_with_the_second)
    with pytest.raises(
        ChildProcessError, match=r"a worker died; 1 of 2 shards are missing, the first is 1-.* \(of .*1.pc"
    ):
        FlowSampler().write(days[:2], tmp_path / "out", shards="npy")
    monkeypatch.undo()
    FlowSampler().write(days[:2], tmp_path / "out", shards="npy")
    assert len(FlowTable.load(tmp_path / "out").captures) == 2


# A cluster.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Start a scheduler and two workers, each a process of its own; return the address."""
    pytest.importorskip("distributed")
    folder = tmp_path_factory.mktemp("cluster")
    with contextlib.ExitStack() as stack:
        address = started_scheduler(stack, folder)
        for _ in range(2):
            started_worker(stack, folder, address)
        yield address


def started_scheduler(stack, folder):
    """Start a scheduler; return its address."""
    port_file = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--idle-timeout", "300s"]
    scheduler = started(stack, folder, "scheduler", *options, "--scheduler-file", port_file)
    while not (port_file.exists() and port_file.read_text().endswith("}")):
        assert scheduler.poll() is None
        time.sleep(0.05)
    return json.loads(port_file.read_text())["address"]


def started_worker(stack, folder, address):
    return started(
        stack, folder, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "60"
    )


def started(stack, folder, *command):
    """Start a part of a cluster; it ends with the stack."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "DASK_TEMPORARY_DIRECTORY": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *command], cwd=folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stack.callback(process.wait, 30)
    stack.callback(process.kill)
    return process


@contextlib.contextmanager
def joined(address, n_workers=2):
    """Use a cluster."""
    from distributed import Client

    with Client(address, timeout=20) as client, joblib.parallel_config("dask"):
        client.wait_for_workers(n_workers, timeout=20)
        yield client


class Traffic(NamedTuple):
    """What goes through a scheduler."""

    sizes: list[int]  # of tasks and results, in bytes
    arrays: list[np.ndarray]  # joblib sends those of some size apart from the tasks


@pytest.fixture
def traffic(monkeypatch):
    import cloudpickle
    import distributed
    from joblib._dask import DaskDistributedBackend

    found = Traffic([], [])
    submit, scatter = distributed.Client.submit, distributed.Client.scatter
    received = DaskDistributedBackend.retrieve_result_callback

    def sent(client, function, *arguments, **settings):
        found.sizes.append(len(cloudpickle.dumps((function, arguments, settings))))
        return submit(client, function, *arguments, **settings)

    def sent_apart(client, array, **settings):
        found.arrays.append(array)
        return scatter(client, array, **settings)

    def returned(backend, result):
        found.sizes.append(len(pickle.dumps(result)))
        return received(backend, result)

    monkeypatch.setattr(distributed.Client, "submit", sent)
    monkeypatch.setattr(distributed.Client, "scatter", sent_apart)
    monkeypatch.setattr(DaskDistributedBackend, "retrieve_result_callback", returned)
    return found


@pytest.mark.parametrize("method", ["flows", "write", "npy", "parquet"])
def test_a_cluster_gives_what_one_machine_gives(days, expected, cluster, tmp_path, method, traffic):
    sampler = FlowSampler(rotated=False)
    with joined(cluster), pytest.warns(CaptureWarning) as caught:
        flows = sampled(sampler, days, method, tmp_path / "out")
    assert len(caught) == 2
    assert_same(flows, expected)
    assert len(traffic.sizes) >= 2 * len(days)
    assert max(traffic.sizes) < MOST_BYTES
    assert traffic.arrays == []


@pytest.mark.parametrize("method", ["flows", "npy"])
def test_tasks_of_many_captures_are_small(days, cluster, tmp_path, method, traffic):
    paths = [tmp_path / f"{'capture of a sensor with a long name, ' * 3}{number}.pcap" for number in range(64)]
    for path in paths:
        os.link(days[0], path)
    with joined(cluster):
        flows = sampled(FlowSampler(rotated=False), paths, method, tmp_path / "out")
    assert len(flows) == 64 * len(FlowSampler().flows(days[0]))
    assert len(traffic.sizes) == 2 * (16 if method == "flows" else 32)  # four captures each, for names and for shards
    assert max(traffic.sizes) < MOST_BYTES


def test_two_clusters_on_one_folder_do_not_mix(days, expected, cluster, tmp_path):
    """Two callers, each with tasks of its own: nobody in a cluster knows of the other."""
    out, failed = tmp_path / "out", []

    def written():
        try:
            with joined(cluster):
                quietly(FlowSampler().write, days, out, shards="npy")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=written) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptureWarning)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    assert_same(FlowTable.load(out), expected)


def without_file_system():
    import os.path

    os.path.isdir = lambda path: False


def with_file_system():
    import genericpath
    import os.path

    os.path.isdir = genericpath.isdir


@pytest.mark.parametrize("method", ["flows", "npy"])
def test_workers_without_the_file_system_are_named(days, cluster, tmp_path, method, monkeypatch):
    monkeypatch.setenv("JOBLIB_TEMP_FOLDER", str(tmp_path))
    folder = tmp_path / "out" if method == "npy" else tmp_path
    message = rf"a worker on {socket.gethostname()} does not see the caller's folder: workers need.*'{folder}'$"
    with joined(cluster) as client:
        client.run(without_file_system)
        try:
            with pytest.raises(FileNotFoundError, match=message):
                sampled(FlowSampler(), days[:2], method, folder)
        finally:
            client.run(with_file_system)


def test_no_capture_is_lost_with_a_worker_that_is_killed(tmp_path, tmp_path_factory):
    """Of two workers, each of which has some 20 captures to go, one is killed."""
    pytest.importorskip("distributed")
    paths, out, failed = many_captures(tmp_path), tmp_path / "out", []

    def written(address):
        try:
            with joblib.parallel_config("dask"):
                FlowSampler().write(paths, out, shards="npy")
        except Exception as error:
            failed.append(error)

    with contextlib.ExitStack() as stack:
        address = started_scheduler(stack, tmp_path)
        first, second = (started_worker(stack, tmp_path, address) for _ in range(2))
        client = stack.enter_context(joined(address))
        run = threading.Thread(target=written, args=[address])
        run.start()
        at_work = wait_for_work_of(client, first.pid, run, out)
        first.send_signal(signal.SIGKILL)
        n_done = len(shards_in(out))
        run.join(60)
        assert at_work
        assert 0 < n_done < len(paths)
        assert list(client.run(os.getpid).values()) == [second.pid]
    assert failed == []
    flows = FlowTable.load(out)
    assert len(flows.captures) == len(paths)
    assert_same(flows, FlowSampler(rotated=False).flows(paths))


def many_captures(folder):
    """Return 40 captures of 10 MB each, of four contents."""
    contents = [pcap([udp(sport=k, payload=b"x" * 1200) for k in range(n, n + 80)]) for n in (1, 100, 200, 300)]
    for number, content in enumerate(contents):
        (folder / f"whole-{number}").write_bytes(content[:24] + content[24:] * 100)
    paths = [folder / f"{number}.pcap" for number in range(40)]
    for number, path in enumerate(paths):
        os.link(folder / f"whole-{number % 4}", path)
    return paths


def shards_in(folder):
    return [path for path in folder.glob("*-*") if not path.name.startswith(".")]


def wait_for_work_of(client, pid, run, out):
    """Wait until there are some shards, and the worker with a process number has work; return what that is."""
    (worker,) = [address for address, found in client.run(os.getpid).items() if found == pid]
    while run.is_alive():
        at_work = client.processing()[worker]
        if len(shards_in(out)) > 3 and any("write_shard" in key or "batch" in key for key in at_work):
            return at_work
        time.sleep(0.005)
    return ()


# Searches.


def mean_score(estimator, X, y=None):
    return estimator.score_samples(X).mean()


@pytest.fixture
def rows(tmp_path):
    """Return rows and a reference, mapped from files."""
    rng = np.random.default_rng(0)
    for name, n_rows in {"X": 240, "reference": 120}.items():
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 256, (n_rows, 20), dtype=np.uint8))
    X, reference = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("X", "reference"))
    return X, sklearn_docids.ReferenceData(reference, np.arange(120, dtype=np.uint8) % 3)


def identity(X):
    return X


def searched(X, reference):
    detector = sklearn_docids.DOCIDSDetector(max_epochs=1, random_state=0)
    search = GridSearchCV(
        detector, {"lambda_reconstruction": [1.0, 10.0]}, cv=2, scoring=mean_score, error_score="raise"
    )
    search.fit(X, reference=reference)
    return [*search.cv_results_["mean_test_score"], search.best_estimator_.offset_]


@pytest.mark.parametrize("of", [identity, mapped_array], ids=["map", "shards"])
def test_searches_in_processes_take_rows_that_are_mapped(rows, processes, of):
    X, reference = rows
    found = searched(of(X), sklearn_docids.ReferenceData(of(reference.X), reference.y))
    with joblib.parallel_config("sequential"):
        assert found == searched(X, reference)


def test_searches_on_a_cluster_send_no_rows_that_lie_in_shards(rows, cluster, traffic):
    X, reference = rows
    with joined(cluster):
        found = searched(mapped_array(X), sklearn_docids.ReferenceData(mapped_array(reference.X), reference.y))
    assert found == searched(X, reference)
    assert traffic.arrays == []
    assert 0 < max(traffic.sizes) < MOST_BYTES


def test_shards_are_scored_by_whoever_takes_them(days, cluster, rows, tmp_path, traffic):
    from sklearn_docids.evaluation import score_shards

    X, reference = rows
    FlowSampler(n_packets=1, n_bytes=20).write(days[:2], tmp_path / "out", shards="npy")
    flows = FlowTable.load(tmp_path / "out")
    detector = sklearn_docids.DOCIDSDetector(max_epochs=1, random_state=0).fit(X, reference=reference)
    sklearn_docids.save_detector(detector, tmp_path / "model")
    with joined(cluster):
        scores = score_shards(tmp_path / "model", tmp_path / "out")
    assert max(traffic.sizes) < MOST_BYTES
    assert traffic.arrays == []
    assert scores.tobytes() == detector.score_samples(flows.X).tobytes()


# The command line.


def test_sample_on_a_cluster(days, expected, cluster, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["sample", *map(str, days[:2]), "-o", out, "--shards", "parquet", "--scheduler", cluster]) == 0
    assert_same(FlowTable.load(out), FlowSampler(rotated=False).flows(days[:2]))
    assert main(["sample", *map(str, days[:2]), "-o", f"{out}.npy", "--scheduler", cluster]) == 0
    assert np.load(f"{out}.npy").tobytes() == FlowSampler().flows(days[:2]).X.tobytes()
    assert main(["sample", "-", "-o", f"{out}.npy", "--scheduler", cluster]) == 1
    assert "- is standard input, which neither --shards nor --scheduler can read" in capsys.readouterr().err


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(_inputs, "SCHEDULER_ANSWERS_WITHIN", 3.0)


def refused(days, tmp_path, capsys, address):
    """Return the one line that the command prints."""
    begin = time.monotonic()
    assert main(["sample", str(days[0]), "-o", str(tmp_path / "out"), "--shards", "--scheduler", address]) == 1
    assert time.monotonic() - begin < 15
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_scheduler_that_does_not_answer_is_one_line(impatient, days, tmp_path, capsys):
    pytest.importorskip("distributed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        silent = f"{LOCALHOST}:{free.getsockname()[1]}"
        assert f"--scheduler {silent}: no Dask scheduler answers there" in refused(days, tmp_path, capsys, silent)
    assert f"--scheduler {silent}: no Dask scheduler answers there" in refused(days, tmp_path, capsys, silent)
    assert "--scheduler no such: no Dask scheduler" in refused(days, tmp_path, capsys, "no such")
    assert not (tmp_path / "out").exists()


def test_a_scheduler_that_answers_once_is_one_line(impatient, days, tmp_path, capsys, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def gone(*arguments, **settings):
        raise TimeoutError

    monkeypatch.setattr(distributed, "Client", gone)
    with contextlib.ExitStack() as stack:
        address = started_scheduler(stack, tmp_path)
        said = f"--scheduler {address}: no Dask scheduler answers there: nothing came for "
        assert said in refused(days, tmp_path, capsys, address)


def test_a_cluster_without_workers_is_one_line(impatient, days, tmp_path, capsys):
    pytest.importorskip("distributed")
    with contextlib.ExitStack() as stack:
        address = started_scheduler(stack, tmp_path)
        assert f"--scheduler {address}: its cluster has no workers, start some" in refused(
            days, tmp_path, capsys, address
        )


def test_a_scheduler_needs_distributed(days, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    line = refused(days, tmp_path, capsys, f"{LOCALHOST}:8786")
    assert "--scheduler needs the package distributed: pip install distributed" in line
