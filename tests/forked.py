"""Real processes in a fraction of a second: a server that has imported the training code and forks a child for each command line.

A child runs `ftlearn.cli.main` as a process of its own, which can be killed, asked to stop, or made to meet a fault by code that it runs first.
As a script this file is the server; imported, it is what the tests use."""
import atexit, functools, json, os, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

import psutil

# Dropout, two batches a step, two epochs of six steps, a checkpoint a step and three validations of several batches: whatever is not restored shows in the bytes.
SETTINGS = dict(num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=2, per_device_eval_batch_size=2, eval_steps=4, save_steps=1, lora_dropout=0.1,
                learning_rate=0.003, dtype="float32", max_length=512)


def child(request):
    "What a fresh process would do after its imports."
    out = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code = 1
    try:
        exec(request["first"], {"__name__": "first"})
        from ftlearn.cli import main
        main(request["args"])
    except SystemExit as e: code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        for s in (sys.stdout, sys.stderr): s.flush()
        os._exit(code)


def serve():
    sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
    import ftlearn.cli, ftlearn.deploy.merge, ftlearn.evaluate.generate, ftlearn.evaluate.report, ftlearn.train.search, ftlearn.train.sft  # noqa: F401
    import mlflow, optuna, preloaded  # noqa: E401, F401
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request: print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
        elif pid := os.fork(): print(pid, flush=True)
        else: child(request)


class Child:
    "One command line in a process of its own."
    def __init__(self, server, pid, log): self.server, self.pid, self.log, self.code = server, pid, Path(log), None

    @property
    def said(self): return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    @property
    def alive(self):
        return self.code is None and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE

    @property
    def cpu(self):
        "Seconds of processor time so far: the clock of a process, however busy the machine is."
        t = psutil.Process(self.pid).cpu_times()
        return t.user + t.system

    def kill(self, sig=signal.SIGKILL):
        "Send a signal, then wait."
        os.kill(self.pid, sig)
        return self.wait()

    def wait(self):
        "The exit code; a negative one is the signal that ended it."
        if self.code is None: self.code = int(self.server.ask({"wait": self.pid}))
        return self.code

    def until(self, there, seconds=1200):
        "Wait until `there()` is true, or the process has ended."
        limit = time.time() + seconds
        while self.alive and not there():
            assert time.time() < limit, f"it did not come to that within {seconds} s:\n{self.said}"
            time.sleep(0.005)
        return self


class Server:
    def __init__(self):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


@functools.lru_cache(None)
def server(): return Server()


def start(log, *args, first=""):
    "Start a command line; what it says goes to the file `log`; `first` is code that the process runs before it."
    return Child(server(), int(server().ask({"args": [str(a) for a in args], "log": str(log), "first": first})), log)


def run(log, *args, first=""):
    "Start one and wait for its end."
    c = start(log, *args, first=first)
    c.wait()
    return c


def training(rows, out, *more, model="tiny", **settings):
    "The arguments of `ftlearn train`."
    sets = [a for k, v in {**SETTINGS, **settings}.items() for a in ("--set", f"{k}={v}")]
    return ["train", "--data", rows, "--out", out, "--model", model, "--method", "lora", *sets, *more]


class Whole:
    "A run that nothing happened to, to compare others with. Made once."
    def __init__(self):
        from ftlearn.core import write_jsonl
        from ftlearn.tiny import tiny_rows
        home = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, home, True)
        self.rows, self.out = home / "rows.jsonl", home / "run"
        write_jsonl(self.rows, tiny_rows(60))
        c = start(home / "log", *training(self.rows, self.out))
        self.cpu = 0.0
        def look(): self.cpu = c.cpu
        c.until(look)
        assert c.wait() == 0, c.said

    def same(self, out):
        "Fail where the run in `out` has other adapter bytes, or logged other numbers."
        from ftlearn.core import sha256_file
        from ftlearn.train.sft import Run
        mine, other = ([{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_second", "memory_mb")} for r in Run(o).log.rows] for o in (self.out, out))
        for a, b in zip(mine, other, strict=True): assert a == b
        weights = [sha256_file(Path(o) / "adapter" / "adapter_model.safetensors") for o in (self.out, out)]
        assert weights[0] == weights[1]


@functools.lru_cache(None)
def whole(): return Whole()


if __name__ == "__main__": serve()
