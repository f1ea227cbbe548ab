"""Run the notebooks as tests, each in a process of its own with a hard time limit (`make test`, `make test-gpu`).

A failed cell, a crash and a hang are each named with their cell; the closing line counts. Cells are counted from 0, as in their ids.
Importing the training libraries takes some ten seconds a process: where many notebooks are run, one process imports them, and each notebook's is forked from it.
Exit 1 when a notebook does not pass or when there are none, 2 for --flags cuda where torch sees no GPU.
"""
import argparse, atexit, multiprocessing.forkserver, os, re, signal, sys, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT, TUTORIAL_LIMIT = 300, 600                                # seconds a notebook
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
COLD = {"21_model.adapt"}                                       # begins with an empty interpreter: it is about what importing does
MANY = 12                                                       # from so many notebooks on, preloaded.py is imported once for all
TAIL = 60                                                       # lines of output shown of a notebook that did not pass
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- in the process of one notebook

def run_one(path, root, trace, flags, out, env):
    "Run a notebook here through nbdev's own `test_nb`, writing to the file `trace` which cell has begun, and how it ended; all that is said goes to the file `out`."
    os.setsid()
    os.environ.clear(), os.environ.update(env)
    for stream in (1, 2): os.dup2(os.open(out, os.O_WRONLY | os.O_APPEND), stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(root)
    from execnb.shell import CaptureShell
    from nbdev.config import get_config
    from nbdev.test import test_nb
    sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]     # a notebook sees no tools
    run_cell = CaptureShell.cell

    def noted(self, cell, *args, **kwargs):
        if cell.cell_type == "code":
            with open(trace, "a") as f: f.write(f"{cell.idx_}\n")
        return run_cell(self, cell, *args, **kwargs)

    CaptureShell.cell = noted
    skip = get_config(Path(path).parent).tst_flags
    skip = skip.split() if isinstance(skip, str) else skip
    passed, _ = test_nb(path, skip_flags=skip, force_flags=flags, basepath=root, profile=False, cell_timeout=None)
    with open(trace, "a") as f: f.write("passed\n" if passed else "failed\n")
    atexit._run_exitfuncs()                                     # a forked process would leave them out
    sys.exit(not passed)


# --- in the process that runs them all

@dataclass
class Result:
    name: str
    ok: bool
    why: str                                                    # "" when ok
    seconds: float
    cells: int
    output: str


def ended(code):
    "What an exit status means: a signal's name, or the number."
    if code >= 0: return f"exit status {code}"
    try: return signal.Signals(-code).name
    except ValueError: return f"signal {-code}"


def kill(process, sig=signal.SIGKILL):
    "Send a signal to the process and to all that it started."
    try: os.killpg(process.pid, sig)
    except PermissionError: pass
    except ProcessLookupError:                                  # not yet, or no longer, the head of a group
        if process.is_alive(): os.kill(process.pid, sig)


class Runner:
    def __init__(self, root=ROOT, flags=(), workers=1, limit=None, preload=False):
        self.root, self.flags, self.workers, self.limit = Path(root).resolve(), list(flags), workers, limit
        self.running, self.lock, self.stopped = set(), threading.Lock(), False
        os.environ.update(QUIET)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
        self.fresh, self.forks = multiprocessing.get_context("spawn"), multiprocessing.get_context("forkserver")
        if preload: self.import_once()

    def import_once(self):
        "Start the process that notebooks are forked from; it finds preloaded.py beside this file."
        self.forks.set_forkserver_preload(["preloaded"])
        env = dict(os.environ)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent), env.get("PYTHONPATH")]))
        try: multiprocessing.forkserver.ensure_running()
        finally: os.environ.clear(), os.environ.update(env)

    def limit_of(self, path): return self.limit or (LIMIT if path.parent.name == "nbs" else TUTORIAL_LIMIT)

    def run(self, path) -> Result:
        "Run one notebook in a process group of its own."
        with tempfile.TemporaryDirectory() as tmp:
            trace, out, limit = Path(tmp) / "trace", Path(tmp) / "output", self.limit_of(path)
            trace.touch(), out.touch()
            with self.lock:
                if self.stopped: return Result(path.stem, False, "not started", 0.0, 0, "")
                process = (self.fresh if path.stem in COLD else self.forks).Process(target=run_one, args=(str(path), str(self.root), str(trace), self.flags, str(out), dict(os.environ)))
                process.start()
                start = time.monotonic()
                self.running.add(process)
            try:
                process.join(limit)
                if hung := process.is_alive(): self.interrupt(process)
            finally:
                kill(process)                                   # whatever the notebook has left running
                process.join()
                self.running.discard(process)
            return self.judge(path, None if hung else process.exitcode, hung, limit, time.monotonic() - start, trace.read_text().split(), out.read_text(errors="replace"))

    @staticmethod
    def interrupt(process):
        "Ask a process for the stacks of its threads (nbdev prints them on SIGINT) and give it a moment for that."
        kill(process, signal.SIGINT)
        process.join(5)

    def judge(self, path, code, hung, limit, seconds, trace, output) -> Result:
        last, cells = (trace or [""])[-1], [t for t in trace if t.isdigit()]
        output = re.sub(r"While Executing Cell #(\d+)", lambda m: f"While executing cell {int(m[1]) - 1}", output)     # nbdev counts from 1
        at = "after its last cell" if last == "passed" else f"in cell {cells[-1]}" if cells else "before its first cell"
        if hung: why = f"hung {at}: stopped after {limit:g} s"
        elif code == 0 and last == "passed": why = ""
        elif code == 1 and (last == "failed" or not cells): why = f"failed {at}"
        else: why = f"crashed {at}: {ended(code)}"
        return Result(path.relative_to(self.root).as_posix(), not why, why, seconds, len(cells), output)

    def run_all(self, paths, say=print) -> list:
        "Run the notebooks, `workers` at a time; say how each went as it ends. Results in the order of `paths`."
        results = {}
        with ThreadPoolExecutor(self.workers) as pool:
            jobs = {pool.submit(self.run, p): p for p in paths}
            try:
                for job in as_completed(jobs):
                    r = results[jobs[job]] = job.result()
                    say(f"{'ok    ' if r.ok else 'FAILED'} {r.seconds:6.1f} s  {r.cells:3} cells  {r.name}{'' if r.ok else ': ' + r.why}", flush=True)
                    if not r.ok: say("\n".join(f"    | {line}" for line in r.output.rstrip().splitlines()[-TAIL:]), flush=True)
            except KeyboardInterrupt:
                with self.lock: self.stopped = True
                for process in list(self.running): kill(process)
                raise
        return [results[p] for p in paths]


def close(results, seconds, say=print):
    "The summary and the counted closing line; gives back the exit status."
    bad = [r for r in results if not r.ok]
    if not results: say("no notebook was found, and a run without notebooks proves nothing. Next: run from a full checkout.")
    else:
        slow = max(results, key=lambda r: r.seconds)
        say(f"\n{len(results)} notebooks in {seconds:.0f} s; the slowest is {slow.name} with {slow.seconds:.0f} s")
    for r in bad: say(f"{r.name}: {r.why}. Next: run `.venv/bin/python tools/nbtest.py {Path(r.name).stem}`, or open it with `make lab`.")
    say(f"notebooks: {len(results) - len(bad)} passed, {len(bad)} failed")
    return int(bool(bad) or not results)


def need_gpu():
    import torch
    if torch.cuda.is_available(): return print(f"GPU: {torch.cuda.get_device_name()}")
    print(f"torch {torch.__version__} sees no CUDA GPU on this machine; the cells marked cuda can only run where there is one (`make test` runs all others).")
    sys.exit(2)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("names", nargs="*", help="notebooks (default: all)")
    args.add_argument("-j", "--workers", type=int, default=1, help="notebooks at a time (default 1)")
    args.add_argument("--flags", default="", help="run the cells with these flags too: cuda, slow")
    args.add_argument("--limit", type=float, help=f"seconds a notebook may take (default {LIMIT}, a tutorial {TUTORIAL_LIMIT})")
    args.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    args.add_argument("--preload", action=argparse.BooleanOptionalAction, help=f"import the training libraries once for all notebooks (default: from {MANY} notebooks on)")
    args = args.parse_args()
    from notebooks import Project, select
    if "cuda" in args.flags.split(): need_gpu()
    signal.signal(signal.SIGTERM, signal.default_int_handler)    # ended from outside: end the notebooks too
    paths, start = select(Project(args.root).paths, args.names), time.monotonic()
    if args.preload is None: args.preload = len(paths) >= MANY
    try: results = Runner(args.root, args.flags.split(), max(1, args.workers), args.limit, args.preload).run_all(paths)
    except KeyboardInterrupt: sys.exit(130)
    sys.exit(close(results, time.monotonic() - start))


if __name__ == "__main__": main()
