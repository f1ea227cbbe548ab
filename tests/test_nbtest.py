"""The notebook runner names a failure, a crash and a hang with their cell, counts, and leaves no process behind."""
import os, re, subprocess, sys, time
from pathlib import Path

import nbtest, pytest

TOOL = Path(nbtest.__file__)


def run(mini, *args):
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    return subprocess.run([sys.executable, TOOL, "--root", mini.root, *args], capture_output=True, text=True, timeout=300, env=env)


def line_of(out, name): return next(line for line in out.splitlines() if line.startswith(("ok", "FAILED")) and name in line)


@pytest.fixture(scope="module")
def outcome(mini_made, tmp_path_factory):
    "One run over notebooks of every fate, two at a time; the hang has a short limit."
    import shutil
    from conftest import Mini
    mini = Mini(shutil.copytree(mini_made, tmp_path_factory.mktemp("run") / "mini"))
    pid = mini.root / "pid"
    mini.write("tutorials/01_fails", "md:# F", "x = 1", "1 / 0", "x = 2")
    mini.write("tutorials/02_leaves", "md:# L", "import os", "os._exit(0)")
    mini.write("tutorials/03_killed", "md:# K", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")
    mini.write("tutorials/05_flags", "md:# C", "x = 1", "#| cuda\n1 / 0")
    mini.write("tutorials/06_exits", "md:# E", "import sys", "sys.exit(0)")
    most = run(mini, "-j", "2")
    mini.write("tutorials/07_hangs", "md:# H", f"import subprocess, time\nchild = subprocess.Popen(['sleep', '600'])\nopen({str(pid)!r}, 'w').write(str(child.pid))",
               "#| eval: false\n1 / 0", "time.sleep(600)")
    return pid, most, run(mini, "07_hangs", "--limit", "15")


def test_passes(outcome):
    out = outcome[1].stdout
    assert re.match(r"ok +\d+\.\d s +\d+ cells  nbs/00_core.ipynb$", line_of(out, "00_core"))
    assert line_of(out, "10_data.rows").startswith("ok") and line_of(out, "05_flags").startswith("ok")


def test_failed_cell_is_named(outcome):
    out = outcome[1].stdout
    assert "nbs/tutorials/01_fails.ipynb: failed in cell 2" in line_of(out, "01_fails")
    assert "ZeroDivisionError" in out, "the tail of its output is shown"


def test_crashes_are_named(outcome):
    out = outcome[1].stdout
    assert "nbs/tutorials/02_leaves.ipynb: crashed in cell 2: exit status 0" in line_of(out, "02_leaves")
    assert "nbs/tutorials/03_killed.ipynb: crashed in cell 2: SIGKILL" in line_of(out, "03_killed")


def test_sys_exit_does_not_pass(outcome): assert line_of(outcome[1].stdout, "06_exits").startswith("FAILED")


def test_hang_is_named_and_ended(outcome):
    pid, _, r = outcome
    assert "nbs/tutorials/07_hangs.ipynb: hung in cell 3: stopped after 15 s" in line_of(r.stdout, "07_hangs")
    assert gone(int(pid.read_text())), "a process that the notebook started is still running"


def test_counted_closing_line(outcome):
    r = outcome[1]
    assert r.returncode == 1 and r.stdout.splitlines()[-1] == "notebooks: 4 passed, 4 failed", r.stdout
    assert outcome[2].stdout.splitlines()[-1] == "notebooks: 0 passed, 1 failed"


def gone(pid):
    "Whether a process has ended, within five seconds."
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z": return True
        time.sleep(0.1)


def test_ended_from_outside_it_ends_its_notebooks(mini):
    pid = mini.root / "pid"
    mini.write("tutorials/04_hangs", "md:# H", f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))", "time.sleep(600)")
    process = subprocess.Popen([sys.executable, TOOL, "--root", mini.root, "04_hangs"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        if pid.exists() and pid.read_text(): break
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 130 and gone(int(pid.read_text()))


def test_imported_once_for_all(mini):
    "With --preload a notebook finds the libraries imported, and its programs see nothing of the tools."
    mini.write("tutorials/08_modules", "md:# M", "import os, sys", "assert {'torch', 'trl.trainer.sft_trainer', 'preloaded'} <= sys.modules.keys()", "assert 'tools' not in os.environ.get('PYTHONPATH', '') and not any(p.endswith('tools') for p in sys.path)",
               "import atexit\nopen('gone', 'w').close()\natexit.register(os.remove, os.path.abspath('gone'))")
    assert "ok" in line_of(run(mini, "08_modules", "--preload").stdout, "08_modules") and not list(mini.root.rglob("gone"))
    assert "failed in cell 2" in line_of(run(mini, "08_modules", "--no-preload").stdout, "08_modules")


def main(mini, monkeypatch, *args):
    "The exit status of nbtest.main in this process."
    monkeypatch.setattr(sys, "argv", ["nbtest.py", "--root", str(mini.root), *args])
    with pytest.raises(SystemExit) as e: nbtest.main()
    return e.value.code


def test_unknown_name(mini, monkeypatch):
    said = main(mini, monkeypatch, "00_cor")
    assert "no notebook '00_cor'" in said and "00_core" in said


def test_none_found_is_a_failure(mini, monkeypatch, capsys):
    for p in mini.root.glob("nbs/*.ipynb"): p.unlink()
    assert main(mini, monkeypatch) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "notebooks: 0 passed, 0 failed"


def test_gpu_is_refused_politely_where_there_is_none(mini, monkeypatch, capsys):
    import torch
    if torch.cuda.is_available(): pytest.skip("this machine has a GPU")
    assert main(mini, monkeypatch, "--flags", "cuda") == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert "no CUDA GPU" in line


def test_flags_run_their_cells(mini, monkeypatch, capsys):
    assert main(mini, monkeypatch, "00_core") == 0
    mini.write("tutorials/05_slow", "md:# S", "x = 1", "#| slow\n1 / 0")
    assert main(mini, monkeypatch, "05_slow", "--flags", "slow") == 1
    assert "failed in cell 2" in capsys.readouterr().out
