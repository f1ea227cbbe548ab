"""What make says before anything is installed."""
import os, re, shutil, subprocess

import pytest

from conftest import ROOT

TARGETS = "install demo lab test check export clean-nbs readme config bench test-gpu help".split()


def make(*args, cwd=ROOT): return subprocess.run(["make", *args], cwd=cwd, capture_output=True, text=True, env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")})


@pytest.fixture
def bare(tmp_path):
    "A checkout without .venv, as far as make looks at it."
    for name in ("Makefile", "settings.ini", "pyproject.toml", "constraints.txt"): shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def fake_python(folder, version):
    "A python3 that says of itself that it is `version`."
    path = folder / "python-old"
    path.write_text(f'#!/bin/sh\nexec python3 -c "import sys; sys.version_info = {version!r}; sys.argv = [\'-c\']; exec(\'\'\'$2\'\'\')"\n')
    path.chmod(0o755)
    return path


def test_help_lists_every_target(bare):
    r = make(cwd=bare)
    assert r.returncode == 0 and set(TARGETS) <= set(re.findall(r"^  make (\S+)", r.stdout, re.M)), r.stdout + r.stderr


@pytest.mark.parametrize("target", [t for t in TARGETS if t not in ("help", "install")])
def test_every_target_installs_first(target, bare):
    r = make("-n", target, cwd=bare)
    assert r.returncode == 0 and "pip install" in r.stdout, r.stdout + r.stderr


def test_no_python(bare):
    r = make("install", "PYTHON=no-such-python", cwd=bare)
    assert r.returncode == 2 and "no-such-python is not on the PATH. Next:" in r.stdout and not (bare / ".venv").exists()


def test_old_python(bare):
    r = make("install", f"PYTHON={fake_python(bare, (3, 9, 18))}", cwd=bare)
    assert r.returncode == 2 and "is Python 3.9.18, and ftlearn needs" in r.stderr and not (bare / ".venv").exists(), r.stdout + r.stderr


def test_demo_passes_its_variables_on(bare):
    r = make("-n", "demo", "METHOD=lora", "MODEL=tiny", "DATA=my rows.jsonl", "OUT=runs/x", cwd=bare)
    assert '.venv/bin/ftlearn demo --method "lora" --model "tiny" --data "my rows.jsonl" --out "runs/x"' in r.stdout
    assert r"--" not in make("-n", "demo", cwd=bare).stdout.splitlines()[-1]
