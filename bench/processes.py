"""The engines' processes: their environment, what is asked of them; and imports in fresh ones."""
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Some set these for other libraries' sake; the first two make NumPy's products slow, and without
# bytecode on disk an import compiles a package that lies in its source tree.
UNWANTED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONDONTWRITEBYTECODE")


class EngineError(RuntimeError):
    """What went wrong in an engine's process, in one line."""


def cores_of(threads):
    """The last cores that this process may run on, or fewer where there are fewer."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
    return cores[-threads:]


def environment(threads):
    """This process's environment, with every engine's number of threads."""
    flags = f"--xla_cpu_multi_thread_eigen={'false' if threads == 1 else 'true'}"
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
             "FASTBP_NUM_THREADS", "NPROC")     # NPROC is XLA's
    env = {k: v for k, v in os.environ.items() if k not in UNWANTED}
    return {**env, **dict.fromkeys(names, str(threads)), "TORCHINDUCTOR_COMPILE_THREADS": "1", "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu"}


class Engine:
    """An engine in a process of its own. It waits, using no processor, until it is asked."""

    def __init__(self, name, cores, threads):
        self.name = name
        self.log = tempfile.TemporaryFile("w+")    # noqa: SIM115  close() closes it
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", name, ",".join(map(str, cores))], cwd=ROOT, text=True,
            env=environment(threads), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)

    def ask(self, method, **args):
        """The answer as a dict; EngineError where there is none."""
        try:
            self.process.stdin.write(json.dumps([method, args]) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            self.log.seek(0)
            last = (self.log.read().strip().splitlines() or ["no word"])[-1]
            raise EngineError(f"{self.name}: its process ended with {self.process.returncode}: {last[:200]}")
        answer = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{self.name}: {answer['error']}")
        return answer

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def import_seconds(module, cores):
    """The time of `import module` in a fresh process."""
    pinned = f"os.sched_setaffinity(0, {cores!r})\n" if hasattr(os, "sched_setaffinity") else ""
    code = f"import os, time\n{pinned}begin = time.perf_counter()\nimport {module}\nprint(time.perf_counter() - begin)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(len(cores)), capture_output=True,
                          text=True)
    if done.returncode:
        raise EngineError(f"{module}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return float(done.stdout)
