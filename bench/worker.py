"""One engine in a process of its own: `python -m bench.worker ENGINE CORES`.

Reads a command a line, [method, arguments], and answers a line; both are JSON. The parent sets the
environment (bench/processes.py); this pins the process, and then imports the engine.
"""
import json
import os
import sys
import time


class Worker:
    """An engine, and the one workload that it holds ready."""

    def __init__(self, engine):
        self.engine = engine
        self.case = None
        self.calls = 0     # of one timed run; 0: not yet known

    def hello(self):
        """The engine's version, or why it is not here."""
        from bench.engines import module_of
        try:
            return {"version": module_of(self.engine).VERSION}
        except ModuleNotFoundError as missing:
            return {"missing": f"{missing.name} is not installed"}

    def check(self, workload):
        """Build a workload; its numbers after the first steps, None where the engine lacks the form."""
        from bench.engines import build
        self.case, self.calls = None, 0    # what the last one held is free
        self.case = build(self.engine, find(workload))
        return {"numbers": self.case and self.case.check()}

    def reference(self, workload, form):
        """The numbers that all engines must reach."""
        from bench.engines import reference
        return {"numbers": reference(find(workload), form)}

    def time(self, least, times):
        """Seconds a step: the best of `times` runs that take about `least` seconds or more."""
        while not self.calls or self._run() < least / 2:
            self.calls = 2 * self.calls or 1
        return {"seconds": min(self._run() for _ in range(times)) / (self.calls * self.case.steps)}

    def _run(self):
        begin = time.perf_counter()
        self.case.run(self.calls)
        return time.perf_counter() - begin

    def limits(self, least):
        """Multiply-adds a second, at most."""
        from fastbp.limits import multiply_adds
        return {"multiply_adds": multiply_adds(least)}

    def copy(self, size, least):
        """Seconds to read and write `size` bytes in all."""
        from fastbp.limits import copy
        return {"seconds": copy(size, least)}


def find(name):
    from bench.workloads import WORKLOADS
    for workload in WORKLOADS:
        if workload.name == name:
            return workload
    from bench.gates import gate_workloads
    return gate_workloads()[name]


def main(engine, cores):
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, cores.split(",")))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)      # what an engine prints is no answer
    worker = Worker(engine)
    for line in sys.stdin:
        method, args = json.loads(line)
        try:
            answer = getattr(worker, method)(**args)
        except Exception as problem:
            first = (str(problem).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(problem).__name__}: {first}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
