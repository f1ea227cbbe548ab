"""A training that is killed, or asked to stop, at any moment goes on to the same adapter, byte for byte (fp32, CPU), and to the same log."""
import json, os, random, shutil, signal, subprocess, sys, time

import pytest

from forked import run, start, training, whole
from ftlearn.core import sha256_file
from ftlearn.train.checkpoint import newest
from ftlearn.train.sft import Run


def test_killed_at_twenty_random_moments(tmp_path):
    "Twenty kills at random moments of processor time, from the start of the process to the end of it, along as many runs as that takes."
    seed = random.randrange(2**32)
    rng, kills, n = random.Random(seed), 0, 0
    print(f"seed {seed}")
    while kills < 20:
        out, n = tmp_path / f"run{n}", n + 1
        while kills < 20:
            moment = rng.uniform(0, 0.9 * whole().cpu)
            process = start(tmp_path / "log", *training(whole().rows, out))
            if process.until(lambda: process.cpu >= moment).alive: os.kill(process.pid, signal.SIGKILL)
            if process.wait() == 0: break
            assert process.code == -signal.SIGKILL, process.said
            kills += 1
            assert newest(out).skipped == []
        if process.code: assert run(tmp_path / "log", *training(whole().rows, out)).code == 0
        whole().same(out)


DEADLY = """
import builtins, io, os, signal
import safetensors.torch, torch
CALLS = {os: "mkdir open fsync rename replace unlink rmdir".split(), io: ["open"], builtins: ["open"], torch: ["save"], safetensors.torch: ["serialize_file"]}

def deadly(n):
    "This process dies before its n-th call to the file system."
    left = [n]
    def wrap(module, name):
        real = getattr(module, name)
        def call(*args, **kw):
            left[0] -= 1
            if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kw)
        setattr(module, name, call)
    for module, names in CALLS.items():
        for name in names: wrap(module, name)

def fork_and_die(n):
    "In the child 0, and it will die; in the parent how it ended."
    pid = os.fork()
    if not pid: deadly(n); return None
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

IN_A_SAVE = DEADLY + """
import json, shutil
from pathlib import Path
import ftlearn.train.sft as sft
from ftlearn.train.checkpoint import newest
real = sft.save_checkpoint

def save(run, step, write, **kw):
    if step != 9: return real(run, step, write, **kw)
    home, spare, n, end = Path(run) / "checkpoints", Path(run) / "spare", 0, -9
    shutil.copytree(home, spare)
    while end == -9:
        n += 1
        end = fork_and_die(n)
        if end is None: real(run, step, write, **kw); os._exit(0)
        found = newest(run)
        print("RESULT", json.dumps([n, end, found.step, len(found.skipped)]), flush=True)
        shutil.rmtree(home), shutil.copytree(spare, home)
    shutil.rmtree(spare)
    return real(run, step, write, **kw)

sft.save_checkpoint = save
"""


def results(said): return [json.loads(line.removeprefix("RESULT ")) for line in said.splitlines() if line.startswith("RESULT ")]


def test_killed_at_every_file_boundary_of_a_save(tmp_path):
    "In mid-run a copy of the training process saves the real checkpoint and dies before its n-th call to the file system, for every n."
    c = run(tmp_path / "log", *training(whole().rows, tmp_path / "run"), first=IN_A_SAVE)
    assert c.code == 0, c.said
    table = results(c.said)
    assert len(table) > 30 and [r[0] for r in table] == list(range(1, len(table) + 1))
    assert [r[1] for r in table] == [-signal.SIGKILL] * (len(table) - 1) + [0]
    steps = [r[2] for r in table]
    assert steps == sorted(steps) and set(steps) == {8, 9}, "the checkpoint before, then the new one"
    assert {r[3] for r in table} == {0}, "none is ever damaged"
    whole().same(tmp_path / "run")


IN_THE_ADAPTER = DEADLY + """
import json, shutil
import ftlearn.train.sft as sft
real = sft._fit

def fit(run, *args, **kw):
    result, n, end = real(run, *args, **kw), 0, -9
    while end == -9:
        n += 1
        end = fork_and_die(n)
        if end is None: return result  # this child goes on to write the adapter
        weights = run.adapter / "adapter_model.safetensors"
        print("RESULT", json.dumps([n, end, run.finished, sft.sha256_file(weights) if weights.exists() else None]), flush=True)
        shutil.rmtree(run.adapter, ignore_errors=True)
    return result

sft._fit = fit
"""


def test_killed_at_every_file_boundary_of_the_adapter(tmp_path):
    "The same after the last step: a run is finished with the whole adapter, or not finished."
    c = run(tmp_path / "log", *training(whole().rows, tmp_path / "run"), first=IN_THE_ADAPTER)
    assert c.code == 0, c.said
    table, good = results(c.said), sha256_file(whole().out / "adapter" / "adapter_model.safetensors")
    assert len(table) > 20 and table[-1][1] == 0
    assert all(weights == good for *_, finished, weights in table if finished) and not table[0][2] and table[-1][2]
    whole().same(tmp_path / "run")


COUNT = """
import os, signal
import ftlearn.train.sft as sft
real, passes = sft.answer_loss, [0]

def loss(model, *args, **kw):
    passes[0] += model.training
    happen(passes[0], model.training)
    return real(model, *args, **kw)

sft.answer_loss = loss
me = lambda s: os.kill(os.getpid(), s)
"""
STOPS = {  # an epoch has eleven passes, two a step but for the last
    "SIGTERM in the first pass of step 9": (15, 9, COUNT + "def happen(n, training):\n    if n == 16 and training: me(signal.SIGTERM)"),
    "SIGINT in the second pass of step 3": (2, 3, COUNT + "def happen(n, training):\n    if n == 6 and training: me(signal.SIGINT)"),
    "SIGTERM in the validation after step 8": (15, 8, COUNT + "def happen(n, training):\n    if n == 15 and not training: me(signal.SIGTERM)"),
    "SIGTERM in the save of step 6, the end of an epoch": (15, 7, """
import os, signal
import ftlearn.train.sft as sft
real = sft.save_checkpoint
def save(run, step, write, **kw):
    if step == 6: os.kill(os.getpid(), signal.SIGTERM)
    return real(run, step, write, **kw)
sft.save_checkpoint = save
"""),
}


@pytest.mark.parametrize("name", STOPS)
def test_asked_to_stop(tmp_path, name):
    "It saves and ends within a step, says so, and goes on to the same bytes. No regular checkpoint is due where it stops."
    number, step, first = STOPS[name]
    settings = {} if "save" in name else {"save_steps": 100}
    c = run(tmp_path / "log", *training(whole().rows, tmp_path / "run", **settings), first=first)
    assert c.code == 128 + number, c.said
    assert f"stopped by {name.split()[0]} after step {step}, which is saved. Next: the same command goes on from there." in c.said and "Traceback" not in c.said
    assert newest(tmp_path / "run").step == step and not Run(tmp_path / "run").finished
    c = run(tmp_path / "log", *training(whole().rows, tmp_path / "run", **settings))
    assert c.code == 0 and f"going on from step {step}" in c.said, c.said
    whole().same(tmp_path / "run")


def test_a_process_from_the_start(tmp_path):
    "Nothing forked: a fresh process, asked to stop from outside while it trains."
    command = [sys.executable, "-c", "from ftlearn.cli import main; main()", *map(str, training(whole().rows, tmp_path / "run"))]
    log = tmp_path / "run" / "log.jsonl"
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as the forked ones: sums of two threads differ in the last bit
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=one_thread)
    limit = time.time() + 1200
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None, process.stdout.read()
        assert time.time() < limit
        time.sleep(0.01)
    done = len(Run(tmp_path / "run").log.train)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=1200)[0]
    assert process.returncode == 143, said
    assert newest(tmp_path / "run").step - done <= 2  # the step in which the signal came, and one that the log was about to hold
    assert run(tmp_path / "log", *training(whole().rows, tmp_path / "run")).code == 0
    whole().same(tmp_path / "run")


def test_a_new_start_that_is_killed_does_not_look_finished(tmp_path):
    "`train --no-resume` over a finished run: as soon as it has begun, the old adapter is no result any more."
    out = shutil.copytree(whole().out, tmp_path / "run")
    new = lambda: [p for p in out.glob("checkpoints/step-*") if int(p.name.removeprefix("step-")) < 11]  # the finished run has kept steps 11 and 12
    process = start(tmp_path / "log", *training(whole().rows, out, "--no-resume")).until(new)
    assert process.kill() == -signal.SIGKILL and not Run(out).finished and not list(out.glob("adapter/*"))
    c = run(tmp_path / "said", "evaluate", out)
    assert c.code == 2 and "not trained to its end" in c.said
    assert run(tmp_path / "log", *training(whole().rows, out)).code == 0
    whole().same(out)


def test_two_processes_cannot_write_one_run(tmp_path):
    first = start(tmp_path / "one", *training(whole().rows, tmp_path / "run")).until(lambda: newest(tmp_path / "run"))
    os.kill(first.pid, signal.SIGSTOP)
    second = run(tmp_path / "two", *training(whole().rows, tmp_path / "run"))
    os.kill(first.pid, signal.SIGCONT)
    assert second.code == 2 and "another process is writing this run" in second.said and f"process {first.pid} on" in second.said
    assert first.wait() == 0, first.said
    whole().same(tmp_path / "run")
