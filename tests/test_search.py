"""A search is shared by two processes, survives a kill, records failures, and looks at no test row."""
import json, shutil, sqlite3

import pytest

import forked
from ftlearn.config import resolve
from ftlearn.core import UserError, write_jsonl
from ftlearn.tiny import tiny_rows
from ftlearn.train import search as module
from ftlearn.train.search import search

PROGRAM = """
import json, os
os.environ.pop("MLFLOW_TRACKING_URI", None)
from ftlearn.config import resolve
from ftlearn.train.search import search
search(resolve(json.loads({config!r}), settings=False), {{"learning_rate": (1e-4, 1e-2)}}, n_trials={n}, seeds=0, pruner="none", storage={storage!r} or None, say=lambda text: print(text, flush=True))
raise SystemExit(0)
"""


@pytest.fixture(autouse=True)
def made(tmp_path, mlflow_made):
    for name in ("search", "search-a", "search-b"):
        (tmp_path / name).mkdir()
        shutil.copy(mlflow_made, tmp_path / name / "mlflow.db")


def settings(tmp_path, **more):
    rows = tmp_path / "rows.jsonl"
    if not rows.exists(): write_jsonl(rows, tiny_rows(40))
    return {"model": "tiny", "method": "full", "data": str(rows), "out": str(tmp_path / "search"), "max_length": 512, "dtype": "float32", "max_steps": 6} | more


def start(tmp_path, log, config, n, storage=""):
    "A search in a process of its own."
    return forked.start(tmp_path / log, first=PROGRAM.format(config=json.dumps(config), n=n, storage=storage))


def trials(tmp_path, db=None):
    "Optuna's trials, with the process that ran each."
    import optuna
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{db or tmp_path / 'search' / 'study.db'}")
    return study.get_trials()


def runs(tmp_path):
    "MLflow's runs."
    from mlflow import MlflowClient
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'search' / 'mlflow.db'}")
    return client.search_runs([client.get_experiment_by_name("search").experiment_id])


def test_two_processes_one_study(tmp_path):
    "Two processes share a SQLite file: six trials in all, some by each, none twice, each an MLflow run."
    db = tmp_path / "shared.db"
    both = [start(tmp_path, f"log{i}", settings(tmp_path, max_steps=20), 6, f"sqlite:///{db}") for i in range(2)]
    for c in both: assert c.wait() == 0, c.said
    done = trials(tmp_path, db)
    assert len(done) == 6 and {t.state.name for t in done} == {"COMPLETE"}
    assert len({t.user_attrs["process"][1] for t in done}) == 2, "both took part"
    assert len({t.params["learning_rate"] for t in done}) == 6, "no settings were tried twice"
    logged = runs(tmp_path)
    assert sorted(int(r.data.tags["trial"]) for r in logged) == list(range(6)) and all(r.info.status == "FINISHED" for r in logged)
    for r in logged: assert float(r.data.params["learning_rate"]) == pytest.approx(done[int(r.data.tags["trial"])].params["learning_rate"])


def test_killed_and_taken_up_again(tmp_path):
    "SIGKILL in mid-trial: the next call sets the trial free, tries its settings again where it stood, and ends with as many trials."
    config = settings(tmp_path, max_steps=120)
    c = start(tmp_path, "log", config, 2).until(lambda: list((tmp_path / "search" / "trials").glob("*/checkpoints/step-*")))
    assert c.alive, c.said
    c.kill()
    assert [t.state.name for t in trials(tmp_path)] == ["RUNNING"]
    again = start(tmp_path, "again", config, 2)
    assert again.wait() == 0 and "trial 0 was interrupted" in again.said, again.said
    states = [(t.state.name, t.params.get("learning_rate"), t.user_attrs.get("folder")) for t in trials(tmp_path)]
    assert [s for s, *_ in states] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert states[0][1] == states[1][1] and states[1][2] == "0000"
    log = [json.loads(line) for line in open(tmp_path / "search" / "trials" / "0000" / "log.jsonl")]
    assert sum(r["step"] == 1 for r in log) == 1, "the training went on from its checkpoint"
    assert sorted(r.info.status for r in runs(tmp_path)) == ["FINISHED", "FINISHED", "KILLED"]


def test_failed_trial_is_recorded(tmp_path, monkeypatch):
    "One trial raises; the others are kept and its message is in the result."
    real, seen = module.train, []
    def breaks(config, **kw):
        seen.append(config)
        if len(seen) == 2: raise RuntimeError("out of memory")
        return real(config, **kw)
    monkeypatch.setattr(module, "train", breaks)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    r = search(resolve(settings(tmp_path), settings=False), {"learning_rate": (1e-4, 1e-2)}, n_trials=3, seeds=0, pruner="none", say=str)
    assert [t["state"] for t in r.trials] == ["complete", "fail", "complete"] and r.trials[1]["error"] == "out of memory"
    assert "trial 1 failed: out of memory" in r._repr_markdown_() and r.best["loss"] == min(t["loss"] for t in r.finished)
    assert sorted(x.info.status for x in runs(tmp_path)) == ["FAILED", "FINISHED", "FINISHED"]


def test_pruned_and_tracked_elsewhere(tmp_path, monkeypatch):
    "A hopeless trial stops at a quarter; MLFLOW_TRACKING_URI is respected."
    (tmp_path / "search" / "mlflow.db").rename(tmp_path / "elsewhere.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    rates = iter([3e-3] * 4 + [1e-9])
    monkeypatch.setattr(module, "_suggest", lambda trial, name, spec: trial.suggest_float(name, *(lambda x: (x, x))(next(rates))))
    r = search(resolve(settings(tmp_path, max_steps=12, learning_rate=1.0), settings=False), {"learning_rate": (1e-9, 1e-2)}, n_trials=5, seeds=0, say=str)
    assert [t["state"] for t in r.trials] == ["complete"] * 4 + ["pruned"]
    assert not (tmp_path / "search" / "mlflow.db").exists()
    with sqlite3.connect(tmp_path / "elsewhere.db") as db: assert db.execute("select count(*) from runs").fetchone() == (5,)


def test_never_the_test_rows(tmp_path, monkeypatch):
    "Other test rows, the same search: every loss is equal to the last bit."
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from ftlearn.data.split import Splits, load_splits, prep, write_splits
    config = settings(tmp_path)
    splits = prep(config["data"], tmp_path / "a", seed=1)
    write_splits(Splits(splits.train, splits.validation, tiny_rows(9, seed=5), splits.manifest), tmp_path / "b")
    losses = []
    for name in ("a", "b"):
        c = resolve(config | {"data": str(tmp_path / name), "out": str(tmp_path / f"search-{name}")}, settings=False)
        losses.append([t["loss"] for t in search(c, {"learning_rate": (1e-4, 1e-2)}, n_trials=2, seeds=0, say=str).trials])
        assert not load_splits(tmp_path / f"search-{name}" / "data").test
    assert losses[0] == losses[1]


def test_bad_input(tmp_path):
    config = resolve(settings(tmp_path), settings=False)
    for space, words in [({}, "space is empty"), ({"learning_rte": (1e-4, 1e-2)}, "learning_rate"), ({"learning_rate": (1e-2, 1e-4)}, "neither a range"),
                         ({"learning_rate": []}, "neither a range"), ({"learning_rate": (1e-4, 100.0)}, "learning_rate"), ({"seed": [1, 2]}, "cannot be searched")]:
        with pytest.raises(UserError, match=words): search(config, space, say=str)
    with pytest.raises(UserError, match="pruner"): search(config, {"learning_rate": (1e-4, 1e-2)}, pruner="medan", say=str)
    with pytest.raises(UserError, match="cannot be opened") as e: search(config, {"learning_rate": (1e-4, 1e-2)}, storage="nosuch://me:secret@host/db", say=str)
    assert "secret" not in str(e.value)
