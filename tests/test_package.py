"""The package as it is installed: the wheel, the import, the scripts."""
import shutil, subprocess, sys, zipfile
from pathlib import Path

import pytest

from conftest import ROOT

BIN = Path(sys.executable).parent
HEAVY = ("torch", "transformers", "numpy", "scipy", "datasets", "matplotlib")


def python(code): return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def loaded(statement, heavy):
    r = python(f"{statement}\nimport sys; print([m for m in {heavy!r} if m in sys.modules])")
    assert r.returncode == 0, r.stderr
    return r.stdout.strip()


def test_wheel_has_every_module(tmp_path):
    source = tmp_path / "source"                                                 # a build leaves files beside what it builds
    shutil.copytree(ROOT / "ftlearn", source / "ftlearn", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"): shutil.copy2(ROOT / name, source)
    r = subprocess.run([sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "-w", tmp_path], cwd=source, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    (wheel,) = tmp_path.glob("ftlearn-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "ftlearn").rglob("*.py")}
    assert modules and modules <= names, modules - names
    assert not [n for n in names if not n.startswith("ftlearn")], "the wheel holds what is not ours"
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_import_is_light(): assert loaded("import ftlearn", HEAVY) == "[]"


@pytest.mark.parametrize("module", ["core", "config", "cost", "files", "data.formats", "data.duplicates", "data.private", "data.quality", "data.split", "data.encode", "data.pack", "data.template", "data.sources", "data.augment", "data.recombine", "stats", "evaluate.match", "evaluate.overlap", "evaluate.metrics",
                                    "cli"])
def test_import_without_torch(module):
    assert (ROOT / "ftlearn" / f"{module.replace('.', '/')}.py").exists()
    assert loaded(f"import ftlearn.{module}", ("torch", "transformers")) == "[]"


def test_console_scripts():
    from importlib.metadata import entry_points
    scripts = {e.name: e.value for e in entry_points(group="console_scripts")}
    assert scripts["ftlearn"] == "ftlearn.cli:main" and scripts["nbdev_test"] == "nbdev.test:nbdev_test"


@pytest.mark.parametrize("command", ["ftlearn", "nbdev_test", "nbdev-test"])
def test_scripts_answer_help(command):
    r = subprocess.run([BIN / command, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert r.returncode == 0 and "usage" in r.stdout.lower(), r.stdout + r.stderr


def test_constraints_pin_every_requirement():
    import re
    from packaging.requirements import Requirement
    from notebooks import Project
    d = Project(ROOT).settings["DEFAULT"]
    name = lambda s: re.sub(r"[-_.]+", "-", s).lower()
    pins = dict(line.split(";")[0].strip().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {name(k): v for k, v in pins.items()}
    wanted = [Requirement(line.strip()) for key in ("requirements", "dev_requirements") for line in d[key].splitlines() if line.strip()]
    for r in wanted:
        if r.marker and not r.marker.evaluate(): continue
        assert name(r.name) in pins, f"{r.name} is not in constraints.txt. Next: make install pins"
        assert r.specifier.contains(pins[name(r.name)]), f"{r} does not allow the pin {pins[name(r.name)]}"
    assert "+" not in pins["torch"], "a pin with a local version cannot be installed from every index"
