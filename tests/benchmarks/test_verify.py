"""`python -m benchmarks.verify`: it passes, and faults of every kind make it fail."""

import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from benchmarks.verify import attention, catalogue, head_loss, noise, samplers, workers
from benchmarks.verify.__main__ import main
from benchmarks.verify.catalogue import Task
from benchmarks.verify.measure import Measurement, chi_square, chi_square_limit
from benchmarks.verify.samplers import Drawing
from maskgit_kernels.attention import triton_backward, triton_forward

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")  # NumPy's, when interpreted

DRAWING = Drawing("categorical", "log_prob", "fp32", 9, (5, 9))
TASKS = {
    "attention": functools.partial(attention.check_attention, 16, "fp32", 0.3, (1, 1), ((7, 5), (5, 18))),
    "decode_step": functools.partial(samplers.check_decode_step, DRAWING, False),
    "head_sample": functools.partial(samplers.check_head_sample, DRAWING, 16, "code", "fused"),
    "head_loss": functools.partial(head_loss.check_head_loss, "fp32", (3, 30), 21, 16, "position", 0.1, (0, 40)),
    "philox": functools.partial(noise.check_words, 7),
}


@pytest.fixture
def verify(monkeypatch, tmp_path, capsys):
    """Run some tasks by the command: its exit status, its report, and the lines that it wrote."""

    def run(*operators):
        tasks = [Task(operator, "a case", TASKS[operator]) for operator in operators]
        monkeypatch.setattr(catalogue, "tasks", lambda *_: tasks)
        file = tmp_path / "report.json"
        status = main(["--jobs", "1", "--json", str(file), "--junit", str(tmp_path / "report.xml")])
        return status, json.loads(file.read_text()), capsys.readouterr().out.splitlines()

    return run


def test_all_is_well(verify, tmp_path):
    status, report, lines = verify(*TASKS)
    assert (status, report["passed"], report["failed"], report["done"]) == (0, 14, 0, 5)
    assert report["torch"] == torch.__version__ and report["device"] and report["triton"]
    assert [check["operator"] for check in report["checks"]] == [
        "attention forward",
        *["attention backward"] * 3,
        *["decode_step"] * 2,
        *["head_sample"] * 2,
        *["head_loss"] * 5,
        "philox",
    ]
    for check, line in zip(report["checks"], lines[2:], strict=False):
        assert check["status"] == "pass" and check["error"] <= check["limit"] and check["case"] in line
    assert lines[-1].startswith("14 passed, 0 failed")
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert suite.get("tests") == "14" and suite.get("failures") == "0" and len(suite.findall("testcase")) == 14
    assert sorted(x.name for x in tmp_path.iterdir()) == ["report.json", "report.xml"]


def changed(monkeypatch, module, name, change):
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **options: change(original, *args, **options))


@pytest.mark.parametrize(
    "module, kernel, factor, argument, results",
    [
        (triton_forward, "forward", 1.01, 5, {"out", "dq", "dk", "dv"}),  # the scale
        (triton_backward, "backward", 1.01, 8, {"dq", "dk", "dv"}),
    ],
)
def test_a_wrong_scale(module, kernel, factor, argument, results, monkeypatch, verify):
    def scaled(original, *args):
        original(*(x * factor if i == argument else x for i, x in enumerate(args)))

    changed(monkeypatch, module, kernel, scaled)
    status, report, _ = verify("attention", "philox")
    assert status == 1 and report["passed"] == 5 - len(results)
    assert {x["case"].split(",")[0] for x in report["checks"] if x["status"] == "FAIL"} == results


@pytest.mark.parametrize("module, kernel, wrong", [(triton_forward, "forward", 1), (triton_backward, "backward", 3)])
def test_outputs_that_are_not_written(module, kernel, wrong, monkeypatch, verify):
    def all_but_the_last_row(original, *args):
        original(*args)
        for x in args[-2:-1] if kernel == "forward" else args[-3:]:
            x[:, :, -1] = torch.empty_like(x[:, :, -1])

    changed(monkeypatch, module, kernel, all_but_the_last_row)
    status, report, _ = verify("attention")
    unwritten = [check for check in report["checks"] if "unwritten" in check["reason"]]
    assert status == 1 and len(unwritten) >= wrong
    assert all(check["status"] == "FAIL" and check["error"] is None for check in unwritten)


@pytest.mark.parametrize("operator", ["decode_step", "head_sample"])
@pytest.mark.parametrize("fault", ["token", "mask", "count"])
def test_wrong_samples(operator, fault, monkeypatch, verify):
    def sampled(original, *args, **options):
        tokens, masked = original(*args, **options)
        if options["backend"] == "triton":
            opened = options["masked"] & ~masked
            b = int((masked.any(1) & opened.any(1)).nonzero()[0])  # some stay masked there, some don't
            stays, goes = masked[b].nonzero()[-1], opened[b].nonzero()[-1]
            if fault == "token":
                tokens[b, stays] = (tokens[b, stays] + 1) % 9
            elif fault == "count":
                masked[b, stays] = False
            else:  # the right number, but not the right ones
                masked[b, stays], masked[b, goes] = False, True
        return tokens, masked

    changed(monkeypatch, samplers, operator, sampled)
    status, report, _ = verify(operator)
    tokens, masks = report["checks"]
    assert status == 1 and tokens["reference_error"] == masks["reference_error"] == 0
    assert (tokens["status"], masks["status"]) == (("FAIL", "pass") if fault == "token" else ("pass", "FAIL"))
    assert ("wrong number in 1 images" in masks["reason"]) == (fault == "count")


@pytest.mark.parametrize("wrong", ["loss", "hits", "dhidden", "dweight", "dbias", "unwritten"])
def test_wrong_losses(wrong, monkeypatch, verify):
    def changed_result(original, *args):
        results = dict(zip(("loss", "hits", "dhidden", "dweight", "dbias"), original(*args), strict=True))
        if wrong == "unwritten":
            results["dweight"][-1] = torch.empty_like(results["dweight"][-1])
        elif wrong == "hits":
            results["hits"] += 1
        else:
            results[wrong] *= 1.0001
        return tuple(results.values())

    launch = importlib.import_module("maskgit_kernels.head_loss.launch")
    changed(monkeypatch, launch, "head_loss_triton", changed_result)
    status, report, _ = verify("head_loss")
    failed = [x for x in report["checks"] if x["status"] == "FAIL"]
    assert status == 1 and [x["case"].split(",")[0] for x in failed] == [wrong.replace("unwritten", "dweight")]


def test_a_wrong_word(monkeypatch, verify):
    def one_bit_off(original, *args):
        return [x ^ (x == x.max()) for x in original(*args)]

    changed(monkeypatch, noise.philox, "philox_4x32", one_bit_off)
    status, report, _ = verify("philox")
    assert status == 1 and report["checks"][0]["error"] > 0


@pytest.mark.parametrize("operator", ["decode_step", "head_sample"])
def test_wrong_frequencies(operator, monkeypatch, device):
    """Draws at a temperature of 1.3 instead of 1."""

    def warmer(original, *args, softmax_temperature, backend, **options):
        temperature = softmax_temperature * (1.3 if backend == "triton" else 1.0)
        return original(*args, **options, softmax_temperature=temperature, backend="torch")

    changed(monkeypatch, samplers, operator, warmer)
    (found,) = samplers.check_frequencies(operator, 1.0, 16, device)
    assert found.reference_error < found.limit < found.error and not found.passes


def test_chi_square():
    for freedom, quantile in ((5, 35.89), (20, 65.42)):  # of 1 - 1e-6, by SciPy
        assert chi_square_limit(freedom) == pytest.approx(quantile, rel=0.05)
    p = torch.tensor([0.5, 0.5, 0.0])
    assert chi_square(torch.tensor([60, 40, 0]), p) == pytest.approx(4.0)
    assert chi_square(torch.tensor([50, 49, 1]), p) == float("inf")


def test_a_check_that_raises_is_a_failure_and_the_rest_goes_on(monkeypatch, verify, tmp_path):
    def broken(*args, **options):
        raise RuntimeError("no such instruction\nand much more")

    monkeypatch.setattr(samplers, "decode_step", broken)
    status, report, lines = verify("decode_step", "philox")
    assert status == 1 and (report["passed"], report["failed"]) == (1, 1)
    check = report["checks"][0]
    assert check["reason"] == "RuntimeError: no such instruction" and check["error"] is None
    assert "FAIL" in lines[2] and "no such instruction" in lines[2]
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert suite.find("testcase/failure").get("message") == "RuntimeError: no such instruction"


def test_an_interrupted_run_leaves_what_it_has(monkeypatch, tmp_path):
    def interrupt(device):
        raise KeyboardInterrupt

    tasks = [Task("philox", "words", TASKS["philox"]), Task("philox", "never", interrupt)]
    monkeypatch.setattr(catalogue, "tasks", lambda *_: tasks)
    with pytest.raises(KeyboardInterrupt):
        main(["--jobs", "1", "--json", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["tasks"], report["done"], report["passed"]) == (2, 1, 1)


def crash(device):
    yield Measurement("philox", "before", 0.0, 0.0, 0.0)
    os._exit(3)


def hang(device):
    time.sleep(600)
    yield


def fine(device):
    yield Measurement("philox", "fine", 0.0, 0.0, 0.0)


def test_a_crash_costs_one_task():
    tasks = [Task("philox", run.__name__, run) for run in (crash, fine, crash, fine, fine)]
    found = list(workers.run(tasks, 2, torch.device("cpu"), patience=600))
    assert sorted((outcome.task.case, outcome.error) for outcome in found) == [
        ("crash", "its process ended with status 3"),
        ("crash", "its process ended with status 3"),
        ("fine", None),
        ("fine", None),
        ("fine", None),
    ]


def test_what_hangs_is_given_up():
    tasks = [Task("philox", "hang", hang)] * 2
    found = list(workers.run(tasks, 2, torch.device("cpu"), patience=3))
    assert [outcome.error for outcome in found] == ["nothing came of it in 3 s"] * 2


def test_the_catalogue():
    """Everything there is has a check, and `quick` checks are some of all."""
    for on_gpu in (False, True):
        every, quick = (catalogue.tasks(on_gpu, quick, catalogue.OPERATORS) for quick in (False, True))
        assert {task.operator for task in quick} == set(catalogue.OPERATORS)
        assert {(task.operator, task.case) for task in quick} < {(task.operator, task.case) for task in every}
        assert {x.operator for x in catalogue.tasks(on_gpu, False, ("philox",))} == {"philox"}


def test_where_nothing_can_run():
    environment = os.environ | {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.verify"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "TRITON_INTERPRET=1" in done.stderr


def test_unknown_operators(capsys):
    assert main(["--only", "attention", "softmax"]) == 2
    assert "not softmax" in capsys.readouterr().err


def test_a_folder_that_is_not_there(capsys, tmp_path):
    assert main(["--json", str(tmp_path / "none" / "report.json")]) == 2
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err
