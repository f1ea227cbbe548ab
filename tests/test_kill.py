"""A training process killed with SIGKILL and started again ends with the same adapter, byte for byte (fp32, CPU)."""
import signal, subprocess, sys, time

from ftlearn.core import sha256_file, write_jsonl
from ftlearn.tiny import tiny_rows
from ftlearn.train.checkpoint import newest
from ftlearn.train.sft import Run


def command(rows, out):
    sets = ["max_steps=24", "eval_steps=2", "save_steps=2", "dtype=float32", "max_length=512"]
    return [sys.executable, "-c", "from ftlearn.cli import main; main()", "train", "--data", str(rows), "--out", str(out), "--model", "tiny", "--method", "lora",
            *[a for s in sets for a in ("--set", s)]]


def test_killed_and_resumed(tmp_path):
    rows = tmp_path / "rows.jsonl"
    write_jsonl(rows, tiny_rows(120))
    whole = subprocess.run(command(rows, tmp_path / "whole"), capture_output=True, text=True, timeout=300)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(command(rows, tmp_path / "cut"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    limit = time.time() + 240
    while process.poll() is None and not list((tmp_path / "cut" / "checkpoints").glob("step-*")):
        assert time.time() < limit, "no checkpoint was written"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stdout.read()
    assert not Run(tmp_path / "cut").finished and newest(tmp_path / "cut")
    again = subprocess.run(command(rows, tmp_path / "cut"), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "going on from step" in again.stderr, again.stderr
    adapters = [sha256_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "cut")]
    assert adapters[0] == adapters[1]
