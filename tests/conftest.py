import json, os, shutil, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")   # before anything imports a Hub client
os.environ.setdefault("MPLBACKEND", "agg")
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"): os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // int(workers))))   # before anything imports torch
sys.path[:0] = [str(ROOT / "tools"), str(ROOT)]
if workers: import preloaded  # noqa: E402, F401   once, and out of the way of the garbage collections that each training does


LONG = ["test_training", "test_kill", "test_search", "test_cli_search", "test_deploy_package", "test_gradients", "test_multiprocess", "test_data_files"]


def pytest_collection_modifyitems(items):
    "The files that take a minute or more come first (with --no-loadscope-reorder): so two workers end at about the same time."
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


class Mini:
    "A small project in a folder: the real rules, two notebooks."
    def __init__(self, root): self.root = Path(root)

    def write(self, name, *cells):
        "Write nbs/NAME.ipynb: a text that begins with `# ` and a capital, or `md:`, is Markdown; all else is code."
        from notebooks import clean, dumps
        nb = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}
        for text in cells:
            kind = "markdown" if text.startswith("md:") else "code"
            nb["cells"].append({"cell_type": kind, "source": text.removeprefix("md:"), "metadata": {}} | ({"outputs": [], "execution_count": None} if kind == "code" else {}))
        clean(nb)
        path = self.root / "nbs" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dumps(nb), encoding="utf-8")
        return path

    def library(self, name, *cells, export=None):
        "A library notebook in the form that the checks ask for, with `cells` between its first cells and its last."
        topic = export or name.split("_", 1)[1]
        return self.write(name, f"md:# {name}\n\n> What it promises.", f"#| default_exp {topic}", *cells, "#| hide\nimport nbdev; nbdev.nbdev_export()")

    def edit(self, name, change):
        "Change the notebook nbs/NAME.ipynb as a dict, and write it as Jupyter would."
        from notebooks import dumps
        path = self.root / "nbs" / f"{name}.ipynb"
        nb = json.loads(path.read_text(encoding="utf-8"))
        change(nb)
        path.write_text(dumps(nb), encoding="utf-8")

    def replace(self, file, old, new):
        "Change a text file."
        text = (self.root / file).read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {file}"
        (self.root / file).write_text(text.replace(old, new), encoding="utf-8")


SETTINGS = """[DEFAULT]
name = mini
version = 1.2.3
description = A small project.
author = Nobody
license = Apache-2.0
keywords = small
min_python = 3.11
lib_path = mini
nbs_path = nbs
requirements =
    fastcore
dev_requirements =
    nbdev
console_scripts =

[nbdev]
tst_flags = slow cuda
update_pyproject = false
"""


@pytest.fixture(scope="session")
def mlflow_made(tmp_path_factory):
    "An empty database of MLflow's. Making one takes six seconds."
    from mlflow import MlflowClient
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def mini_made(tmp_path_factory):
    import config, export, readme
    mini = Mini(tmp_path_factory.mktemp("mini"))
    (mini.root / "settings.ini").write_text(SETTINGS, encoding="utf-8")
    (mini.root / "pyproject.toml").write_text(config.render(mini.root / "settings.ini"), encoding="utf-8")
    mini.library("00_core", "#| export\ndef double(x): return 2 * x", "assert double(2) == 4")
    mini.library("10_data.rows", "from mini.core import double", "#| export\nfrom mini.core import double", "#| export\nLIMIT = 3\n\ndef four(x): return double(double(x))",
                 "four(LIMIT)")
    mini.write("index", "md:# Mini\n\nSee [the core](00_core.ipynb).", "#| hide\nsecret = 1", "1 + 1")
    files, said = export.exported(mini.root)
    assert not said
    for name, text in files.items():
        (mini.root / name).parent.mkdir(parents=True, exist_ok=True)
        (mini.root / name).write_text(text, encoding="utf-8")
    (mini.root / "README.md").write_text(readme.render(mini.root), encoding="utf-8")
    return mini.root


@pytest.fixture
def mini(mini_made, tmp_path):
    "A fresh copy of the mini project, which passes every check."
    return Mini(shutil.copytree(mini_made, tmp_path / "mini"))
