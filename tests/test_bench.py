"""The benchmarks run, and refuse an engine that computes something else. No time is asserted."""
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "bench").is_dir(), reason="no source tree")


@pytest.fixture(autouse=True)
def found(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def bench(*args, **options):
    return subprocess.run([sys.executable, "-m", "bench", *map(str, args)], cwd=ROOT, capture_output=True, text=True,
                          **options)


def test_the_table_and_the_json(tmp_path):
    done = bench("--quick", "--rounds", 1, "--only", "8-64-64-4-b64,xent-128x10", "--engines",
                 "fastbp,fastbp loop,numpy", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("workload "))
    assert re.split(r"  +", lines[head].strip())[-5:] == ["numpy", "best peer", "ratio", "limit", "apart"]
    assert all(len(line) == len(lines[head]) for line in lines[head + 1:head + 5])
    report = json.loads((tmp_path / "out.json").read_text())
    assert [(r["workload"], r["by"]) for r in report["rows"]] == [
        ("8-64-64-4-b64", "step"), ("8-64-64-4-b64", "epoch"), ("xent-128x10", "call")]
    for row in report["rows"]:
        assert row["best_peer"] == "numpy" and set(row["peers"]) == {"numpy"}
        assert row["seconds"] > 0 and math.isclose(row["ratio"], row["peers"]["numpy"] / row["seconds"])
        assert 0 <= row["apart"] < 1e-4 and all(len(times) == 1 for times in row["rounds"].values())
    assert report["engines"]["numpy"] == np.__version__ and report["machine"]["threads"] == 1


def test_gates_are_those_of_the_suite():
    done = bench("gates", "--quick", "--only", "sigmoid,matmul")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^(\w+, [\d,]+) +call ", done.stdout, re.M) == [
        "sigmoid, 1,000", "sigmoid, 1,000,000", "matmul, 1,000", "matmul, 1,000,000"]
    from bench.gates import gate_workloads
    assert {w.gate for w in gate_workloads().values()} == set(fb.GATES)


def test_an_engine_that_is_not_installed_is_skipped(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')\n")
    from bench.processes import environment
    done = bench("--quick", "--rounds", 1, "--only", "circuit", "--engines", "fastbp,torch",
                 env={**environment(1), "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torch: skipped, torch is not installed" in done.stdout


@pytest.mark.parametrize("args, words", [
    (["--only", "nothing"], "no such workloads: nothing"), (["--engines", "numpy,nobody"], "no such engine: nobody"),
    (["--engines", "numpy"], "fastbp is what the others are compared with"), (["--threads", "0"], "1 or more")])
def test_wrong_arguments(args, words):
    done = bench(*args)
    assert done.returncode == 2 and words in done.stderr


def test_list():
    from bench.workloads import WORKLOADS
    assert [line.split()[0] for line in bench("--list").stdout.splitlines()] == [w.name for w in WORKLOADS]


WRONG = {
    "scaled": lambda g: g * 1.001, "of the other sign": lambda g: -g, "zero": lambda g: 0 * g,
    "without a row": lambda g: g * (np.arange(len(g)) > 0)[:, None], "shifted": lambda g: np.roll(g, 1, 0),
    "not a number": lambda g: g / 0 * 0,
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_wrong_gradient_is_seen(how):
    from bench.engines import digest
    from bench.measure import TOLERANCE, apart
    g = np.random.default_rng(0).normal(size=(128, 10))
    assert apart(digest(g.astype(np.float32)), digest(g)) < TOLERANCE / 10
    assert apart(digest(WRONG[how](g)), digest(g)) > TOLERANCE


class Fake:
    """An engine's process that answers the same at each step."""

    def __init__(self, numbers):
        self.numbers = numbers
        self.asked = []

    def ask(self, method, **args):
        self.asked.append(method)
        return {"numbers": self.numbers, "seconds": 1e-6}


def test_an_engine_that_disagrees_is_named_and_not_timed():
    from bench.measure import Bench, Effort
    from bench.workloads import WORKLOADS
    run = object.__new__(Bench)
    run.effort, run.rate, run.judge = Effort(2, 1, 0.001), None, Fake([[1.0]])
    run.engines = {"fastbp": Fake([[1.0 + 1e-7]]), "torch": Fake([[1.01]]), "jax": Fake(None)}
    run.alone = {"fastbp": Fake([[1.0 + 1e-7]])}
    result = run.run(WORKLOADS[0])
    assert result.seconds == {"fastbp": [1e-6, 1e-6]}
    assert result.wrong == ["circuit: torch disagrees: [[1.01]], expected [[1.0]]"]
    assert run.engines["torch"].asked == run.engines["jax"].asked == ["check"]
    assert result.alone == {"fastbp": [1e-6, 1e-6]}
    run.alone = {"fastbp": Fake([[1.0 + 2e-7]])}
    assert "circuit: fastbp computes something else with one thread" in run.run(WORKLOADS[0]).wrong


def test_parameters_and_work_of_the_nets():
    from bench.workloads import WORKLOADS, Net
    nets = {w.name: w for w in WORKLOADS if isinstance(w, Net)}
    assert nets["784-500-10"].multiply_adds == 100 * (2 * 784 * 500 + 3 * 500 * 10)
    assert nets["8-64-64-4-b1"].parameters == 8 * 64 + 64 + 64 * 64 + 64 + 64 * 4 + 4
    for w in nets.values():
        x, y = w.ring()[1]
        assert not np.array_equal(x, w.ring()[0][0]) and len(x) == len(y) == w.batch
        assert sum(a.size for pair in w.weights() for a in pair if a is not None) == w.parameters
