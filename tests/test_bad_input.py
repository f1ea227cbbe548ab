"""Wrong use of the command line: one clear message with file, line and next step; the right exit code; nothing half-written."""
import json, shutil

import pytest

from ftlearn import core
from ftlearn.cli import main
from ftlearn.tiny import tiny_rows

GOOD = {"messages": [{"role": "user", "content": "two red cups"}, {"role": "assistant", "content": "{}"}]}


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    "Run one command line in an empty folder; gives exit code and standard error."
    monkeypatch.chdir(tmp_path)
    def run(*args):
        with pytest.raises(SystemExit) as e: main([str(a) for a in args])
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return e.value.code, err
    return run


def write(path, *lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def left(folder): return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("verb", [["check", "no.jsonl"], ["prep", "no.jsonl", "--out", "o"], ["score", "no.jsonl"], ["compare", "no.jsonl", "no.jsonl"],
                                  ["train", "--data", "no.jsonl", "--out", "o", "--model", "tiny"], ["evaluate", "no-run"], ["package", "no-run", "--out", "o"]])
def test_missing_file(cli, tmp_path, verb):
    code, err = cli(*verb)
    assert code == 2 and "no" in err and "Next:" in err
    assert [n for n in left(tmp_path) if n != "o"] == []


BAD = {
    "empty": [],
    "not-json": [json.dumps(GOOD), "{'messages': []}"],
    "unknown-shape": [json.dumps(GOOD), json.dumps({"question": "a", "answer": "b"})],
    "role-order": [json.dumps(GOOD), json.dumps({"messages": [GOOD["messages"][1], GOOD["messages"][0]]})],
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_findings(cli, tmp_path, kind):
    path = write(tmp_path / "rows.jsonl", *BAD[kind])
    code, _ = cli("check", path)
    assert code == 1
    for verb in (["prep", path, "--out", tmp_path / "o"], ["train", "--data", path, "--out", tmp_path / "r", "--model", "tiny"]):
        code, err = cli(*verb)
        assert code in (1, 2) and "rows.jsonl" in err and "Next:" in err
        if kind != "empty": assert "rows.jsonl:2" in err
    assert not (tmp_path / "o").exists() and not (tmp_path / "r" / "data").exists()


@pytest.fixture
def rows(tmp_path):
    core.write_jsonl(tmp_path / "rows.jsonl", tiny_rows(60))
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("args, said", [
    (["--set", "learning_rat=1e-3"], "learning_rate"), (["--set", "r=0"], "r is wrong"), (["--set", "seed=abc"], "whole number"), (["--set", "nonsense"], "name=value"),
    (["--method", "lorra"], "lora"), (["--model", "smolm2-135m-instruct"], "smollm2-135m-instruct"), (["--model", "./nowhere"], "no such model folder"),
    (["--config", "none.toml"], "none.toml")])
def test_wrong_settings(cli, tmp_path, rows, args, said):
    code, err = cli("train", "--data", rows, "--out", tmp_path / "run", *([] if "--model" in args else ["--model", "tiny"]), *args)
    assert code == 2 and said in err
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_unknown_metric(cli, tmp_path):
    path = write(tmp_path / "p.jsonl", json.dumps({"id": "1", "prediction": "a", "references": ["a"]}))
    code, err = cli("score", path, "--metrics", "exact_mach")
    assert code == 2 and "exact_match" in err


def test_wrong_use(cli):
    for args in (["nonsense"], ["power"], ["score"], ["power", "--n", "many"], ["package", "x", "--to", "floppy", "--out", "o"]):
        assert cli(*args)[0] == 2, args


def test_no_place_to_write(cli, tmp_path, rows):
    "A path below a file can never be made, whoever asks (root too)."
    for verb in (["prep", rows, "--out", rows / "sub"], ["train", "--data", rows, "--out", rows / "run", "--model", "tiny"]):
        code, err = cli(*verb)
        assert code == 2 and "Next:" in err
    assert left(tmp_path) == ["rows.jsonl"]


def test_too_little_disk(cli, tmp_path, rows, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda p: full)
    code, err = cli("train", "--data", rows, "--out", tmp_path / "run", "--model", "tiny", "--method", "lora")
    assert code == 2 and "disk" in err and "Next:" in err
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_too_little_memory(cli, tmp_path, rows, monkeypatch):
    import ftlearn.model.load
    monkeypatch.setattr(core, "free_memory", lambda: 1000)
    code, err = cli("train", "--data", rows, "--out", tmp_path / "run", "--model", "tiny", "--method", "lora")
    assert code == 2 and "memory" in err
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(core.UserError): main(["check", "no.jsonl", "--debug"])


def test_a_finished_run_is_not_touched_by_another(cli, tmp_path, rows):
    "Other data, another seed or other settings in the same folder are refused, and the run's own split stays as it was."
    settings = ["--data", rows, "--out", tmp_path / "run", "--model", "tiny", "--method", "lora", "--set", "max_steps=2"]
    assert cli("train", *settings)[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    for other in (["--set", "seed=7"], ["--set", "split=60/20/20"], ["--set", "r=4"]):
        code, err = cli("train", *settings, *other)
        assert code == 2 and "holds" in err, err
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_data_that_changed_since_training(cli, tmp_path, rows):
    data = tmp_path / "data"
    assert cli("prep", rows, "--out", data)[0] == 0
    assert cli("train", "--data", data, "--out", tmp_path / "run", "--model", "tiny", "--method", "lora", "--set", "max_steps=2")[0] == 0
    assert cli("prep", rows, "--out", data, "--seed", "5")[0] == 0
    code, err = cli("evaluate", tmp_path / "run")
    assert code == 1 and "not the data that the run was trained on" in err


def test_no_validation_rows(cli, tmp_path, rows):
    code, err = cli("train", "--data", rows, "--out", tmp_path / "run", "--model", "tiny", "--method", "lora", "--set", "max_steps=2", "--set", "split=80/0/20")
    assert code == 0 and "no validation rows" in err


def test_not_a_run(cli, tmp_path, rows):
    assert cli("prep", rows, "--out", tmp_path / "data")[0] == 0
    code, err = cli("train", "--data", rows, "--out", tmp_path / "data", "--model", "tiny", "--method", "lora")
    assert code == 2 and "KeyError" not in err
