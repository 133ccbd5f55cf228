"""Options from signatures, config files, mistyped options, folders and patterns of captures."""

import inspect
import re
import subprocess
import sys

import pytest
from captures import pcap, udp
from office import capture_of, office

from sklearn_docids import DOCIDSDetector, FlowSampler, MultiViewDetector, load_detector
from sklearn_docids.cli import _inputs, main
from sklearn_docids.cli._inputs import expanded
from sklearn_docids.cli._main import COMMANDS
from sklearn_docids.cli._options import NETWORK, NO_OPTIONS, SAMPLER, SEVERAL_VIEWS, _value, in_options, parameters_of


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    path = tmp_path_factory.mktemp("day") / "day.pcap"
    path.write_bytes(capture_of(office(120, 0)))
    return str(path)


@pytest.mark.parametrize(
    ("source", "estimator"), [(SAMPLER, FlowSampler), (SEVERAL_VIEWS, MultiViewDetector), (NETWORK, DOCIDSDetector)]
)
def test_each_parameter_of_a_class_is_an_option_with_its_default_and_a_sentence(source, estimator):
    found = {parameter.name: parameter for parameter in parameters_of(*source)}
    signature = inspect.signature(estimator).parameters
    assert set(found) == set(signature) - NO_OPTIONS
    for name, parameter in found.items():
        default = signature[name].default
        if isinstance(default, tuple):
            assert parameter.default.rstrip(",") == ", ".join(map(str, default))
        else:
            assert str(_value(parameter.default)) == str(default)
        assert len(parameter.help) > 10


def test_help_of_every_command_lists_its_options_without_loading_torch():
    check = "import sys; from sklearn_docids.cli import main\n"
    check += "try: main(sys.argv[1:])\nfinally: print({'torch', 'sklearn', 'numba'} & set(sys.modules))"
    for arguments in (["--help"], *([command, "--help"] for command in COMMANDS)):
        result = subprocess.run([sys.executable, "-c", check, *arguments], capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "set()"
        assert "options:" in result.stdout
        assert "exit status:" in result.stdout or arguments != ["--help"]
    assert all(command in COMMANDS for command in ("fit", "score", "watch", "info", "calibrate", "allow", "report"))


def test_options_reach_sampler_views_and_network(day, tmp_path):
    options = "--idle-timeout 60 --no-tcp-restart --vxlan-ports 4789,8472 --protocols udp,tcp --seed 4"
    options += " --power 2 --calibration later --views statistics"
    command = ["fit", day, "--model", str(tmp_path / "m"), *options.split()]
    assert main([*command, "--false-alarm-rate", "0.1"]) == 0
    detector = load_detector(tmp_path / "m")
    sampler = detector.sampler_
    assert (sampler.idle_timeout, sampler.tcp_restart, sampler.vxlan_ports) == (60, False, (4789, 8472))
    assert (sampler.protocols, sampler.random_state) == (("udp", "tcp"), 4)
    assert (detector.power, detector.calibration, detector.random_state) == (2, "later", 4)
    options = "--lr 0.002 --optimizer sgd --max-epochs 1 --n-neighbors 2 --dense-activation relu --schedule none"
    command = ["fit", day, "--model", str(tmp_path / "n"), "--views", "bytes", *options.split()]
    assert main([*command, "--false-alarm-rate", "0.1", "--layout", "payload", "--lambda-reconstruction", "3"]) == 0
    detector = load_detector(tmp_path / "n")
    assert (detector.lr, detector.optimizer, detector.n_neighbors, detector.max_epochs) == (0.002, "sgd", 2, 1)
    assert (detector.dense_activation, detector.schedule, detector.lambda_reconstruction) == ("relu", None, 3)
    assert detector.sampler_.layout == "payload"


@pytest.mark.parametrize("suffix", ["toml", "yaml"])
def test_a_config_file_gives_options_and_the_command_line_takes_their_place(day, tmp_path, suffix):
    config = tmp_path / f"docids.{suffix}"
    values = {"captures": [day], "model": str(tmp_path / "m"), "views": ["statistics", "novelty"], "power": 2.5}
    values |= {"idle_timeout": 30, "tcp-restart": False, "false_alarm_rate": 0.05, "quiet": True}
    sign, words = (" = ", str) if suffix == "toml" else (": ", str)
    config.write_text(
        "".join(f"{k}{sign}{words(v).lower() if v in (True, False) else repr(v)}\n" for k, v in values.items())
    )
    assert main(["fit", "--config", str(config), "--power", "3"]) == 0
    detector = load_detector(tmp_path / "m")
    assert (detector.view_names_, detector.power, detector.false_alarm_rate) == (["statistics", "novelty"], 3, 0.05)
    assert (detector.sampler_.idle_timeout, detector.sampler_.tcp_restart) == (30, False)


def test_header_fields_can_have_actions_of_their_own_in_a_config_file(day, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text('views = "statistics"\nfalse_alarm_rate = 0.1\n[fields]\nip = "zero"\nmac = "keep"\n')
    assert main(["fit", day, "--model", str(tmp_path / "m"), "--config", str(config)]) == 0
    assert load_detector(tmp_path / "m").sampler_.fields == {"ip": "zero", "mac": "keep"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("idle_timeut = 3", "there is no option idle_timeut: did you mean idle-timeout?"),
        ("power = [", "no TOML: "),
        ("power = 'abc'", "--power must be a float"),
        ("quiet = 3", "quiet = 3: it is true or false"),
        ("midstream = 'both'", "midstream = 'both': invalid choice: 'both'"),
        ("seed = -1", "seed = -1: '-1' is not a whole number"),
        ("seed = true", "seed = True: it is a number or text"),
        ("help = true", "there is no option help"),
        ("\xff", "no TOML: 'utf-8' codec can't decode"),
    ],
)
def test_a_config_file_with_a_mistake_is_refused_by_name(day, tmp_path, capsys, text, message):
    config = tmp_path / "c.toml"
    config.write_bytes(text.encode("latin-1"))
    assert main(["fit", day, "--model", str(tmp_path / "m"), "--config", str(config)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("docids: error: ")
    assert message in error
    assert str(config) in error or message.startswith("--power")


def test_a_config_file_runs_nothing(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text(f"model: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    assert main(["fit", "--config", str(config)]) == 1
    assert "no YAML: could not determine a constructor" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert main(["fit", "--config", str(tmp_path / "missing.toml")]) == 1
    assert "missing.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fit x.pcap --refrence r", "there is no option --refrence: did you mean --reference?"),
        ("fit x.pcap --model m --modl=y", "there is no option --modl: did you mean --model?"),
        ("fit x.pcap --mod m", "there is no option --mod: did you mean --model?"),
        ("fit x.pcap", "the following arguments are required: --model"),
        (
            "fit x.pcap --model m --false-alarm-rate 2",
            "argument --false-alarm-rate: 2 is no rate above 0 and up to 0.5",
        ),
        ("fit x.pcap --model m --seed -1", "argument --seed: '-1' is not a whole number from 0 to 4294967295"),
        ("score x.pcap --model m --window 0", "argument --window: 0 is no number of seconds above 0"),
        ("score x.pcap --model m --window nan", "argument --window: nan is no number of seconds above 0"),
        ("evaluate --model m --normal a b --attacks c", "unrecognized arguments: b; an option takes one value"),
        ("sample x.pcap -o y --jobs 0", "argument --jobs: 0 is no number of threads; -1 is one per core"),
        ("fit x.pcap --model m --jobs x", "argument --jobs: x is no number of threads; -1 is one per core"),
        ("demo --seed -1", "argument --seed: '-1' is not a whole number"),
        ("scor x.pcap", "invalid choice: 'scor'"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused_by_option_with_status_two(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_what_can_be_refused_is_refused_before_the_work(day, tmp_path, capsys, monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("work had begun")

    for name in ("flows", "sample", "iter_flows", "write"):
        monkeypatch.setattr(FlowSampler, name, work)
    file, model = tmp_path / "file", str(tmp_path / "m")
    file.write_text("")
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        (["fit", str(tmp_path / "missing.pcap"), "--model", model], "missing.pcap"),
        (["fit", day, "--model", model, "--reference", day], "is not a folder: it holds one capture, or folder of"),
        (["fit", day, "--model", model, "--max-epochs", "abc"], "--max-epochs must be a str among {'auto'} or an int"),
        (["fit", str(tmp_path / "empty"), "--model", model], "there is no capture in this folder"),
        (["fit", str(tmp_path / "no-*.pcap"), "--model", model], "no file fits the pattern"),
        (["fit", "-", "-", "--model", model], "- is standard input, which can be read once"),
        (["score", day, "--model", day], "is a capture: are the arguments swapped?"),
        (["score", day, "--model", str(file)], "is not a usable DOC-IDS model"),
        (
            ["score", day, "--model", str(file), "--output", "x.txt"],
            "the end of the name says what to write, .csv, .jsonl",
        ),
        (["score", day, "--model", str(file), "--html", "x", "--write-pcap", "./x"], "name the same file"),
        (["evaluate", "--model", str(file), "--normal", day, "--attacks", day], "--attacks"),
        (
            ["evaluate", "--model", str(file), "--normal", day, "--attacks", str(tmp_path), "--window", "60"],
            "--window is for channels and hosts, which are measured with --calibration alone",
        ),
        (["demo", "--output", str(file)], "is a file; the demo writes to a folder"),
        (["sample", day, "-o", str(tmp_path / "nofolder" / "x.npy")], "the folder of --output"),
    ]:
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("docids: error: ")
        assert message in error
        assert error.count("\n") == 1


def test_folders_and_patterns_stand_for_captures_in_the_order_of_time(tmp_path):
    for name, time in (("b", 100.0), ("a", 200.0), ("c", 50.0)):
        (tmp_path / f"{name}.pcap").write_bytes(pcap([udp()], times=[time]))
    (tmp_path / "notes.txt").write_text("no capture")
    (tmp_path / ".hidden.pcap").write_bytes(pcap([udp()]))
    (tmp_path / "[odd].pcap").write_bytes(pcap([udp()], times=[300.0]))
    in_time = [str(tmp_path / f"{name}.pcap") for name in ("c", "b", "a", "[odd]")]
    assert expanded([str(tmp_path)]) == in_time
    assert expanded([str(tmp_path / "[a-c].pcap")]) == in_time[:3]
    assert expanded([str(tmp_path / "[odd].pcap"), in_time[1]]) == [in_time[3], in_time[1]]


def test_errors_name_options_and_not_parameters_but_leave_names_alone():
    assert in_options("false_alarm_rate=0.01 needs 99 rows") == "--false-alarm-rate 0.01 needs 99 rows"
    assert in_options("The 'window' parameter of FlowAggregator must be") == "--window must be"
    assert in_options("give n_jobs=None, or random_state=3") == "give --jobs None, or --seed 3"
    for name in ("'window=5.pcap'", "window=5.pcap: no capture", "a/window=5", "my_window=5"):
        assert in_options(name) == name


def interrupted_training(monkeypatch):
    """Press Ctrl-C in the third step of training."""
    from sklearn_docids.cli._training_bar import TrainingBar

    def press(self, net, *args, **kwargs):
        self.n_steps = getattr(self, "n_steps", 0) + 1
        if self.n_steps == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingBar, "on_batch_end", press)


def test_ctrl_c_in_training_keeps_a_usable_network_or_says_that_there_is_no_model(day, tmp_path, capsys, monkeypatch):
    interrupted_training(monkeypatch)
    model = tmp_path / "m"
    fit = ["fit", day, "--model", str(model), "--false-alarm-rate", "0.1", "--max-epochs", "4"]
    assert main([*fit, "--views", "bytes"]) == 130
    assert f"docids: interrupted: the model learned so far is written to {model}" in capsys.readouterr().err
    assert load_detector(model).n_iter_ == 2  # of 4
    model.unlink()
    assert main([*fit, "--views", "bytes,statistics"]) == 130
    error = capsys.readouterr().err
    assert "docids: interrupted: no model was written; --checkpoint-folder would keep the state" in error
    assert not model.exists()


def test_progress_has_rate_and_time_left_on_standard_error_unless_it_is_unwanted(day, capsys, monkeypatch):
    monkeypatch.setattr(_inputs, "SHOWN_AFTER", 0.0)
    monkeypatch.setattr(_inputs, "SECONDS_BETWEEN_LINES", 0.0)
    for quiet, shown in ((False, True), (True, False)):
        with _inputs.reading([day], "reading", quiet=quiet) as sources:
            FlowSampler().flows(sources)
        streams = capsys.readouterr()
        assert streams.out == ""
        assert bool(re.search(r"reading: +\d+%.*B/s\]", streams.err)) == shown
