"""Measuring: all engines agree on a workload first, then they are timed in turn, round after round."""
import contextlib
import math
from dataclasses import dataclass, field

from bench.engines import ENGINES, OURS
from bench.processes import Engine, EngineError, import_seconds
from bench.workloads import Import

TOLERANCE = 1e-4      # relative, of a loss or a digest of gradients in float32


@dataclass
class Effort:
    """How long to measure: rounds, and in each `times` runs of `least` seconds."""

    rounds: int = 5
    times: int = 3
    least: float = 0.03


@dataclass
class Result:
    """What was measured of a workload."""

    workload: object
    seconds: dict = field(default_factory=dict)    # engine: a step's time in each round
    numbers: dict = field(default_factory=dict)    # engine: what it computed
    alone: dict = field(default_factory=dict)      # fastbp's engines: the same with one thread, on the same cores
    apart: dict = field(default_factory=dict)      # engine: relative distance from the reference
    wrong: list = field(default_factory=list)      # what fails the run, in words
    notes: list = field(default_factory=list)      # what a peer can't do here, in words
    limit: tuple = None                            # ("multiply-adds" or "copy", seconds of a step at least)


class Bench:
    """The engines that are installed, each in its process, and the machine's limits."""

    def __init__(self, names, cores, effort):
        self.cores, self.effort = cores, effort
        self.engines, self.versions, self.missing = {}, {}, {}
        self.rate = None
        self._copies = {}
        self._open = contextlib.ExitStack()
        self.judge = self._start("numpy")
        try:
            for name in names:
                engine = self._start(name)
                answer = engine.ask("hello")
                if "missing" in answer:
                    self.missing[name] = answer["missing"]
                else:
                    self.engines[name], self.versions[name] = engine, answer["version"]
            self.alone = {name: self._start(name, 1) for name in self.engines if name in OURS and len(cores) > 1}
        except BaseException:
            self.close()
            raise

    def _start(self, name, threads=None):
        return self._open.enter_context(contextlib.closing(Engine(name, self.cores, threads or len(self.cores))))

    def close(self):
        self._open.close()

    def measure_rate(self):
        """Multiply-adds a second, at most; measured before all else."""
        self.rate = self._any_of_ours().ask("limits", least=self.effort.least * 3)["multiply_adds"]

    def _any_of_ours(self):
        return next(self.engines[name] for name in OURS if name in self.engines)

    def run(self, workload):
        result = Result(workload)
        if isinstance(workload, Import):
            return self._run_import(result)
        ready = self._agreeing(workload, result)
        alone = [name for name in ready if name in self.alone]
        for name in alone:
            numbers = self.alone[name].ask("check", workload=workload.name)["numbers"]
            if apart(numbers, result.numbers[name]) > 1e-12:    # NumPy's digests depend on its own threads
                result.wrong.append(f"{workload.name}: {name} computes something else with one thread")
        for _ in range(self.effort.rounds):
            for engines, names, seconds in ((self.engines, ready, result.seconds), (self.alone, alone, result.alone)):
                for name in names:
                    answer = engines[name].ask("time", least=self.effort.least, times=self.effort.times)
                    seconds.setdefault(name, []).append(answer["seconds"])
        result.limit = self._limit(workload)
        return result

    def _agreeing(self, workload, result):
        """The engines that have the workload, and compute what it is."""
        expected, ready = {}, []
        for name, engine in self.engines.items():
            form = ENGINES[name][1]
            try:
                numbers = engine.ask("check", workload=workload.name)["numbers"]
            except EngineError as problem:
                (result.wrong if name in OURS else result.notes).append(f"{workload.name}: {problem}")
                continue
            if numbers is None:
                continue
            if form not in expected:
                expected[form] = self.judge.ask("reference", workload=workload.name, form=form)["numbers"]
            result.numbers[name] = numbers
            result.apart[name] = apart(numbers, expected[form])
            if result.apart[name] <= TOLERANCE:
                ready.append(name)
            else:
                result.wrong.append(f"{workload.name}: {name} disagrees: {numbers}, expected {expected[form]}")
        return ready

    def _run_import(self, result):
        for _ in range(self.effort.rounds):
            for name in ("fastbp", "numpy"):
                if name in self.engines:
                    result.seconds.setdefault(name, []).append(import_seconds(name, self.cores))
        return result

    def _limit(self, workload):
        """The longest of the times that the hardware needs at least; None below half a microsecond."""
        limits = []
        if self.rate and workload.multiply_adds:
            limits.append((workload.multiply_adds / self.rate, "multiply-adds"))
        if self.rate and workload.bytes:
            if workload.bytes not in self._copies:
                answer = self._any_of_ours().ask("copy", size=workload.bytes, least=self.effort.least * 3)
                self._copies[workload.bytes] = answer["seconds"]
            limits.append((self._copies[workload.bytes], "copy"))
        seconds, kind = max(limits, default=(0, None))
        return (kind, seconds) if seconds > 5e-7 else None


def apart(numbers, expected):
    """The largest distance of two lists of floats, relative to the larger ones of each."""
    largest = 0.0
    for mine, theirs in zip(numbers, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            distance = 0.0 if a == b else abs(a - b) / (max(map(abs, theirs)) or 1.0)
            largest = max(largest, math.inf if math.isnan(distance) else distance)
    return largest
