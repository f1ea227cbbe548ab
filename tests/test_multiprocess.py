"""Two processes under `accelerate launch` train as one does, and one of them writes. All on CPUs, joined by gloo."""
import os, socket, subprocess, sys, textwrap
from pathlib import Path

import pytest
import yaml

import forked
from ftlearn.config import resolve
from ftlearn.core import UserError, read_json, write_jsonl
from ftlearn.tiny import tiny_rows
from ftlearn.train.checkpoint import newest, run_lock
from ftlearn.train.sft import Run, train

CONFIGS = Path(__file__).parent.parent / "configs" / "accelerate"
FILES = sorted(CONFIGS.glob("*.yaml"))
BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def settings(rows, out, batch, **more):
    return {"model": "tiny", "method": "lora", "data": str(rows), "split": "70/10/20", "out": str(out), "dtype": "float32", "max_length": 512, "num_train_epochs": 2, "learning_rate": 1e-2,
            "per_device_train_batch_size": batch, "per_device_eval_batch_size": 4, "eval_steps": 5, "save_steps": 5} | more


def asked(config):
    "The settings as the command line's words."
    named = ("data", "out", "model", "method")
    return ["train", *(a for k in named for a in (f"--{k}", config[k])), *(a for k, v in config.items() if k not in named for a in ("--set", f"{k}={v}"))]


def launch(config, *extra, file="cpu.yaml"):
    "`ftlearn train` under the launcher."
    command = [BIN / "accelerate", "launch", "--config_file", CONFIGS / file, "--main_process_port", free_port(), BIN / "ftlearn", *asked(config), *extra]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=1500, env=env)


def pair(config, folder):
    "The same without the launcher, whose start takes half a minute: two forked processes with the variables that it sets. Exit code and all that was said."
    port, both = free_port(), []
    for rank in ("0", "1"):
        env = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, ACCELERATE_USE_CPU="true")
        both.append(forked.start(Path(folder) / f"said-{port}-{rank}", *asked(config), first=f"import os; os.environ.update({env!r})"))
    return max(abs(c.wait()) for c in both), "\n".join(c.said for c in both)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "The same training with one process of 8 rows, and with two of 4."
    tmp = tmp_path_factory.mktemp("many")
    write_jsonl(tmp / "rows.jsonl", tiny_rows(114))
    one = train(resolve(settings(tmp / "rows.jsonl", tmp / "one", 8), settings=False), progress=False, say=str)
    said = launch(settings(tmp / "rows.jsonl", tmp / "two", 4))
    assert said.returncode == 0, said.stderr
    return one, Run(tmp / "two"), said


def test_the_same_curve(runs):
    one, two, _ = runs
    rows = one.manifest["data"]["rows"]
    assert rows["train"] % 8 not in (0, 4) and rows["validation"] % 2, "the rows must not come out even, or the padding is not tested"
    assert len(one.log.train) == 20 and len(one.log.validation) >= 4
    for kind, names in (("train", ("loss", "grad_norm", "learning_rate")), ("validation", ("eval_loss",))):
        a, b = getattr(one.log, kind), getattr(two.log, kind)
        assert [r["step"] for r in a] == [r["step"] for r in b]
        for name in names: assert [r[name] for r in b] == pytest.approx([r[name] for r in a], rel=1e-4), name
    for name in ("tokens", "mean_token_accuracy"):
        assert [r[name] for r in two.log.train] == pytest.approx([r[name] for r in one.log.train], rel=1e-6), name


def test_the_same_adapter(runs):
    from safetensors.torch import load_file
    a, b = (load_file(r.adapter / "adapter_model.safetensors") for r in runs[:2])
    assert set(a) == set(b)
    for name in a: assert ((a[name] - b[name]).norm() <= 1e-3 * a[name].norm()), name


def test_one_writer(runs):
    one, two, said = runs
    steps = [r["step"] for r in two.log.rows if "loss" in r]
    assert steps == sorted(set(steps)) and not two.log.notes, "each step stands in the log once"
    assert (said.stdout + said.stderr).count("model tiny:") == 1, "one process speaks"
    files = lambda run: {p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file() and not p.name.startswith(".")}
    apart = {f for f in files(two) ^ files(one) if "rng_" not in f}
    assert not apart
    assert two.manifest["identity"]["processes"] == 2 and not list(two.path.glob("checkpoints/.tmp*"))


def test_checkpoints_hold_every_process(runs):
    found = newest(runs[1].path)
    assert not found.skipped and {f"rng_state_{i}.pth" for i in (0, 1)} <= set(read_json(found.path / "manifest.json")["files"])


def test_taken_up_again_by_two_only(runs):
    "The end is removed: two processes go on from the checkpoint to the same bytes; one process is refused."
    one, two, _ = runs
    config = settings(two.path.parent / "rows.jsonl", two.path, 4)
    whole = (two.adapter / "adapter_model.safetensors").read_bytes()
    (two.adapter / "ftlearn.json").unlink()
    with pytest.raises(UserError, match="processes"): train(resolve(config, settings=False), progress=False, say=str)
    code, said = pair(config, two.path.parent)
    assert code == 0 and "going on from step" in said, said
    assert (two.adapter / "adapter_model.safetensors").read_bytes() == whole


HELD = """
    import sys
    from ftlearn.train.processes import *
    join_processes(cpu=True)
    with one_writer(sys.argv[1]): print("wrote", flush=True)
"""


def test_held_by_another(tmp_path):
    "Where another run holds the folder, both processes end, and only the first says why."
    (tmp_path / "held.py").write_text(textwrap.dedent(HELD))
    command = [BIN / "accelerate", "launch", "--config_file", CONFIGS / "cpu.yaml", "--main_process_port", free_port(), tmp_path / "held.py", tmp_path / "run"]
    with run_lock(tmp_path / "run"):
        r = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert r.returncode != 0 and "wrote" not in r.stdout
    assert r.stderr.count("UserError: ") == 1 and "another process is writing this run" in r.stderr


# --- the files that ship

def validated(path, *more):
    "What accelerate itself makes of a file: (its own config, the arguments of the launch)."
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    args = launch_command_parser().parse_args(["--config_file", str(path), *more, "script.py"])
    args, defaults, _ = _validate_launch_command(args)
    return load_config_from_file(str(path)), args


@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_config_files(path):
    "accelerate's loader takes each file, and knows every key in it."
    config, args = validated(path)
    keys = set(yaml.safe_load(path.read_text()))
    assert keys <= set(config.to_dict()) | {"main_process_ip", "main_process_port", "gpu_ids"}
    assert args.mixed_precision == "no" and args.num_processes == config.num_processes
    assert bool(args.use_fsdp) == path.stem.startswith("fsdp") and bool(args.multi_gpu) == (path.stem in ("cpu", "ddp", "nodes"))


@pytest.mark.parametrize("path", [p for p in FILES if p.stem.startswith("fsdp")], ids=lambda p: p.stem)
def test_fsdp_files(path, monkeypatch):
    "The environment that the launcher would set makes an FSDP2 plugin as the file says."
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env
    _, args = validated(path, "--main_process_port", free_port())
    for k, v in prepare_multi_gpu_env(args).items():
        if k.startswith(("FSDP", "ACCELERATE")): monkeypatch.setenv(k, v)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True and plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type) and not plugin.activation_checkpointing


def test_nodes_file():
    _, args = validated(CONFIGS / "nodes.yaml", "--machine_rank", "1")
    assert (args.num_machines, args.num_processes, int(args.machine_rank), args.main_process_ip) == (2, 16, 1, "10.0.0.1")


def test_the_flag_cpu_alone_starts_one():
    "Why cpu.yaml is as it is: `--cpu --num_processes 2` starts one process, and says nothing."
    from accelerate.commands import launch as module
    args = module.launch_command_parser().parse_args(["--cpu", "--num_processes", "2", "script.py"])
    args, *_ = module._validate_launch_command(args)
    command, env = module.prepare_simple_launcher_cmd_env(args)
    assert not args.multi_gpu and "WORLD_SIZE" not in {k for k in env if k not in os.environ} and command == [sys.executable, "script.py"]
