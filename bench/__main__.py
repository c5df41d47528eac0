"""The command line: `python -m bench` and `python -m bench gates`."""
import argparse
import contextlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench.engines import ENGINES, OURS
from bench.gates import gate_workloads
from bench.measure import Bench, Effort
from bench.processes import EngineError, cores_of
from bench.report import LEGEND, Table, machine, plot, rows_of, show_time
from bench.workloads import WORKLOADS, Import

QUICK = Effort(rounds=2, times=1, least=0.002)
GATES = Effort(rounds=3, times=2, least=0.005)


def names(text):
    return [name.strip() for name in text.split(",") if name.strip()]


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def parser():
    p = argparse.ArgumentParser(
        prog="python -m bench", description="The same work by fastbp and its peers, each engine in a process of its "
        "own, in turn, pinned to the same cores. All must compute the same loss before they are timed.")
    p.add_argument("what", nargs="?", choices=("workloads", "gates"), default="workloads",
                   help="gates: each gate by call against NumPy, about 1e3 and 1e6 elements")
    p.add_argument("--only", type=names, metavar="NAME,...", help="these workloads, or gates")
    p.add_argument("--engines", type=names, metavar="NAME,...", help=f"of {', '.join(ENGINES)}")
    p.add_argument("--threads", type=positive, default=1, metavar="N", help="cores, and threads of each engine")
    p.add_argument("--rounds", type=positive, metavar="N", help="how often the engines take turns")
    p.add_argument("--quick", action="store_true", help="little of everything: to see that it runs")
    p.add_argument("--list", action="store_true", help="print the names of the workloads and stop")
    p.add_argument("--json", metavar="FILE", help="write what was measured")
    p.add_argument("--plot", metavar="FILE", help="draw the ratios; needs matplotlib")
    return p


def chosen(args, refuse):
    """The workloads and the names of the engines."""
    if args.what == "gates":
        workloads, engines = list(gate_workloads().values()), ["fastbp", "numpy"]
        keys = [{w.name, w.gate} for w in workloads]
    else:
        workloads, engines = WORKLOADS, list(ENGINES)
        keys = [{w.name} for w in workloads]
    if args.only:
        unknown = set(args.only) - set().union(*keys)
        if unknown:
            refuse(f"no such {args.what}: {', '.join(sorted(unknown))} (see --list)")
        workloads = [w for w, key in zip(workloads, keys, strict=True) if key & set(args.only)]
    if args.engines:
        unknown = set(args.engines) - set(engines)
        if unknown:
            refuse(f"no such engine: {', '.join(sorted(unknown))}; there are {', '.join(engines)}")
        engines = [name for name in engines if name in args.engines]
    if not set(engines) & set(OURS):
        refuse("--engines: fastbp is what the others are compared with")
    return workloads, engines


def measure(args, workloads, engines):
    """Run all and print the table; returns the report."""
    effort = QUICK if args.quick else GATES if args.what == "gates" else Effort()
    effort = replace(effort, rounds=args.rounds or effort.rounds)
    cores = cores_of(args.threads)
    report = {"machine": machine(cores), "rows": [], "wrong": []}
    print(", ".join(f"{key}: {value}" for key, value in report["machine"].items()))
    if len(cores) < args.threads:
        print(f"there are {len(cores)} cores only")
    with contextlib.closing(Bench(engines, cores, effort)) as bench:
        report["engines"], report["missing"] = bench.versions, bench.missing
        print(", ".join(f"{name} {version}" for name, version in bench.versions.items()))
        for name, why in bench.missing.items():
            print(f"{name}: skipped, {why}")
        if any(w.multiply_adds or w.bytes for w in workloads):
            bench.measure_rate()
            report["multiply_adds_per_second"] = bench.rate
            print(f"multiply-adds: {bench.rate / 1e9:.1f} G/s in a matrix product")
        table = Table(bench.engines, [w.title for w in workloads], len(cores))
        print(f"\n{table.head()}", flush=True)
        for workload in workloads:
            result = bench.run(workload)
            rows = rows_of(result)
            for row in rows:
                print(table.row(row))
                if isinstance(workload, Import) and "numpy" in row["peers"]:
                    print(f"  {show_time(row['seconds'] - row['peers']['numpy'])} more than numpy alone")
            for words in result.wrong + result.notes:
                print(f"  {words}")
            sys.stdout.flush()
            report["rows"] += rows
            report["wrong"] += result.wrong
    print(f"\n{LEGEND}")
    return report


def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    workloads, engines = chosen(args, p.error)
    if args.list:
        for w in workloads:
            print(f"{w.name:<24}{w.title}")
        return 0
    begin = time.perf_counter()
    try:
        report = measure(args, workloads, engines)
    except EngineError as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench: stopped", file=sys.stderr)
        return 130
    print(f"{time.perf_counter() - begin:.0f} s")
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        try:
            plot(report["rows"], args.plot)
        except ModuleNotFoundError as missing:
            print(f"--plot: {missing.name} is not installed")
    for words in report["wrong"]:
        print(f"bench: {words}", file=sys.stderr)
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
