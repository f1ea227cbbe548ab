"""`ftlearn search`: what it finds is in its folder and on standard output, it goes on where it was, and wrong use is refused before anything is trained."""
import json, shutil, signal, sqlite3, time, tomllib

import pytest

from forked import run as run_process, start
from ftlearn.cli import main
from ftlearn.config import resolve
from ftlearn.console import _space
from ftlearn.core import UserError, read_json, write_jsonl
from ftlearn.tiny import tiny_rows


@pytest.fixture
def rows(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", tiny_rows(40))
    return tmp_path / "rows.jsonl"


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch, mlflow_made):
    "Run `ftlearn search` in an empty folder; gives exit code, standard output and standard error."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").mkdir()
    shutil.copy(mlflow_made, tmp_path / "s/mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    def call(*args):
        with pytest.raises(SystemExit) as e: main(["search", *map(str, args)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return e.value.code, out, err
    return call


def of(rows, *more, steps=6, rate=1e-5):
    return ["--data", rows, "--out", "s", "--model", "tiny", "--method", "full", "--pruner", "none", "--set", f"max_steps={steps}", "--set", "max_length=512", "--set", "dtype=float32", "--set", f"learning_rate={rate}", *more]


def test_a_rate_that_is_far_too_low_is_found(cli, rows, tmp_path):
    "The default learns nothing; any other rate beats it over the seeds, and the file of the best settings trains with them."
    code, out, err = cli(*of(rows, "--trials", 3, "--over", "learning_rate=1e-5:1e-2", "--seeds", 3, "--json", steps=14))
    found = json.loads(out)
    assert code == 0 and found == read_json(tmp_path / "s/search.json")
    assert found["trials"][0]["params"] == {"learning_rate": 1e-5} == found["default"] and len(found["trials"]) == 3, "the default is tried first"
    assert found["best"]["loss"] == min(t["loss"] for t in found["trials"]) and found["best"]["params"]["learning_rate"] > 1e-5
    assert len(found["seeds"]) == 3 and found["verdict"] == "better" and found["difference"]["high"] < 0 and "Better than the default" in found["headline"]
    assert found["headline"] in (tmp_path / "s/search.md").read_text() and (tmp_path / "s/search.png").read_bytes().startswith(b"\x89PNG")
    best = tomllib.loads((tmp_path / "s/best.toml").read_text())
    assert best == found["best"]["params"] and resolve(file=tmp_path / "s/best.toml", settings=False).learning_rate == best["learning_rate"]
    assert "best.toml" in err and "validation loss" in err


def test_the_same_command_again_adds_nothing_and_more_trials_go_on(cli, rows, tmp_path):
    args = of(rows, "--over", "learning_rate=1e-4:1e-2,per_device_train_batch_size=4/8", "--seeds", 0, "--json", rate=1e-3)
    first, again, more = (json.loads(cli(*args, "--trials", n)[1])["trials"] for n in (2, 2, 3))
    assert first == again == more[:2] and len(more) == 3
    assert all(t["params"]["per_device_train_batch_size"] in (4, 8) and 1e-4 <= t["params"]["learning_rate"] <= 1e-2 for t in more)


def test_a_default_that_is_best_is_said(cli, rows, tmp_path):
    code, out, err = cli(*of(rows, "--trials", 1, "--over", "learning_rate=1e-4:1e-2", rate=1e-3))
    assert code == 0 and "Nothing better than the default" in out
    assert not (tmp_path / "s/best.toml").exists(), "no file of better settings where there are none"


def test_storage_of_ones_own(cli, rows, tmp_path):
    assert cli(*of(rows, "--trials", 1, "--seeds", 0, "--storage", f"sqlite:///{tmp_path / 'mine.db'}", "--study", "night", "--over", "r=8", "--method", "lora"))[0] == 0
    with sqlite3.connect(tmp_path / "mine.db") as db: assert db.execute("select study_name from studies").fetchall() == [("night",)]
    assert not (tmp_path / "s/study.db").exists()


def test_every_trial_failed(cli, rows, tmp_path, monkeypatch):
    from ftlearn.train import search as module
    monkeypatch.setattr(module, "train", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("out of memory")))
    code, out, err = cli(*of(rows, "--trials", 2, "--over", "learning_rate"))
    assert code == 1 and "No trial was finished" in out and "out of memory" in out
    assert read_json(tmp_path / "s/search.json")["best"] is None and not (tmp_path / "s/search.png").exists()


def test_finder(cli, rows, tmp_path):
    code, out, err = cli("--finder", *of(rows, "--json"))
    found = json.loads(out)
    assert code == 0 and 1e-4 < found["suggestion"] < 1e-1 and found == read_json(tmp_path / "s/rates.json")
    assert len(found["rates"]) == len(found["losses"]) and (tmp_path / "s/rates.png").exists() and not (tmp_path / "s/study.db").exists()


@pytest.mark.parametrize("args, said", [
    (["--over", "learning_rat"], "'learning_rate'"), (["--over", "learning_rate=0.01:0.001"], "neither a range"), (["--over", "r=0/8", "--method", "lora"], "r is wrong"), (["--over", "r=8"], "no effect"),
    (["--over", "max_length"], "no range of its own"), (["--over", "seed=1/2"], "cannot be searched"), (["--over", "learning_rate,learning_rate"], "twice"), (["--over", "learning_rate=fast"], "a number"), (["--over", ""], "not a setting"),
    (["--trials", "0"], "1 or more"), (["--seeds", "-1"], "0 or more"), (["--pruner", "medan"], "'median'"), (["--storage", "nosuch://me:secret@host/db"], "cannot be opened"),
    (["--set", "learning_rat=1"], "'learning_rate'"), (["--set", "split=90/0/10"], "validation rows"), (["--method", "lorra"], "lora")])
def test_wrong_use(cli, rows, tmp_path, args, said):
    code, out, err = cli(*of(rows, *args))
    assert code == 2 and said in err and "secret" not in err and out == ""
    assert not (tmp_path / "s/trials").exists() and not (tmp_path / "s/search.json").exists()


def test_no_data(cli):
    for finder in ([], ["--finder"]):
        code, out, err = cli(*of("no.jsonl"), *finder)
        assert code == 2 and "no.jsonl" in err and "Next:" in err


def test_without_over_what_has_an_effect_is_searched():
    c = lambda **s: resolve({"model": "tiny", "data": "rows", **s}, settings=False)
    assert list(_space(c(method="lora"), None)) == ["learning_rate", "r", "per_device_train_batch_size", "num_train_epochs", "warmup_ratio"]
    assert list(_space(c(method="full", max_steps=5), None)) == ["learning_rate", "per_device_train_batch_size", "warmup_ratio"]
    for settings in (dict(learning_rate=9.0), dict(r=1, lora_alpha=1), dict(warmup_ratio=0.9, per_device_train_batch_size=1), dict(weight_decay=0.5, lr_scheduler_type="constant")):
        own = c(method="lora", **settings)
        for name, spec in _space(own, ["learning_rate,r,lora_alpha,per_device_train_batch_size,num_train_epochs,warmup_ratio,weight_decay,lora_dropout,lr_scheduler_type"]).items():
            v = getattr(own, name)
            assert v in spec if isinstance(spec, list) else spec[0] <= v <= spec[1], f"the default must be among the {name}"
            for x in spec: own.but(**{name: x})
    with pytest.raises(UserError, match="learning_rate"): _space(c(), ["learning_rat=1:2"])


def test_a_signal_and_the_same_command_again(rows, tmp_path):
    "SIGTERM in a trial: it saves, says how to go on, and the trial is taken up where it was."
    args = ["search", "--data", rows, "--out", tmp_path / "s", "--model", "tiny", "--method", "full", "--pruner", "none", "--seeds", 0, "--trials", 2, "--over", "learning_rate=1e-4:1e-2", "--set", "max_steps=60", "--set", "max_length=512", "--set", "dtype=float32"]
    c = start(tmp_path / "log", *args, first="import os; os.environ.pop('MLFLOW_TRACKING_URI', None)")
    log = tmp_path / "s/trials/0000/log.jsonl"
    c.until(lambda: log.exists() and log.read_text().count('"step"') > 5)
    assert c.kill(signal.SIGTERM) not in (0, 2), c.said
    seen = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert max(seen) < 60 and not (tmp_path / "s/search.json").exists()
    c = run_process(tmp_path / "log2", *args)
    assert c.code == 0 and "trial 0 was interrupted" in c.said and "going on from step" not in c.said.split("trial 0")[0], c.said
    assert [t["state"] for t in read_json(tmp_path / "s/search.json")["trials"]] == ["complete"] * 2
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps.count(1) == 1 and max(steps) == 60, "the training of the trial went on from its checkpoint"
