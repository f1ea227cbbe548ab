"""LoRA steps on two CPU cores: ftlearn's trainer against TRL's SFTTrainer with its defaults. Same rows, same model, same adapter, alternating runs.

Prints labelled rows a second, the ratio of the medians, and the quality condition: in float32, without length grouping, the losses of the first
steps are equal to 1e-4 relative. `python benchmarks/train_speed.py [--steps 6] [--rounds 3] [--model smollm2-135m-instruct]`"""
import argparse, os, statistics, tempfile, time

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")

import datasets, torch
from transformers import PrinterCallback, TrainerCallback, logging
from trl import SFTConfig, SFTTrainer

from ftlearn.config import Config
from ftlearn.core import Device, seed_everything
from ftlearn.data import sources
from ftlearn.data.encode import encode_rows
from ftlearn.data.formats import answer_of, prompt_of
from ftlearn.model.adapt import adapt
from ftlearn.model.load import load_model
from ftlearn.train.sft import _sft_config, _trainer_class, compute_in_base_dtype

logging.set_verbosity_error()


class Clock(TrainerCallback):
    "Seconds and loss of each step."
    def __init__(self): self.times, self.losses = [], []
    def on_step_begin(self, *args, **kw): self.start = time.perf_counter()
    def on_step_end(self, *args, **kw): self.times.append(time.perf_counter() - self.start)
    def on_log(self, args, state, control, logs=None, **kw):
        if "loss" in logs: self.losses.append(logs["loss"])


def ours(config, rows, dtype):
    loaded = load_model(config.model, device=Device("cpu", dtype, "benchmark", torch.get_num_threads()))
    seed_everything(0)
    model = adapt(loaded.model, "lora", config)
    data = datasets.Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in encode_rows(rows, loaded.tokenizer, 256)])
    with tempfile.TemporaryDirectory() as out:
        args = _sft_config(config, loaded.device, out, len(rows), 0)
        args.eval_strategy = args.save_strategy = "no"
        args.train_sampling_strategy = "sequential" if dtype == "float32" else args.train_sampling_strategy
        clock = Clock()
        trainer = _trainer_class()(model=model, args=args, processing_class=loaded.tokenizer, train_dataset=data, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        if dtype == "bfloat16": compute_in_base_dtype(model)
        trainer.train()
    return clock


def trl(config, rows, dtype):
    loaded = load_model(config.model, device=Device("cpu", "float32", "benchmark", torch.get_num_threads()), attn="sdpa")
    seed_everything(0)
    model = adapt(loaded.model, "lora", config)
    data = datasets.Dataset.from_list([{"prompt": prompt_of(r), "completion": [{"role": "assistant", "content": answer_of(r)}]} for r in rows])
    with tempfile.TemporaryDirectory() as out:
        plain = {"bf16": False, "gradient_checkpointing": False, "train_sampling_strategy": "sequential"} if dtype == "float32" else {}
        args = SFTConfig(output_dir=out, use_cpu=True, max_steps=config.max_steps, per_device_train_batch_size=config.per_device_train_batch_size, learning_rate=config.learning_rate,
                         logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, warmup_steps=config.warmup_ratio, lr_scheduler_type=config.lr_scheduler_type, **plain)
        clock = Clock()
        trainer = SFTTrainer(model=model, args=args, processing_class=loaded.tokenizer, train_dataset=data, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--model", default="smollm2-135m-instruct")
    a = p.parse_args()
    config = Config(model=a.model, method="lora", max_steps=a.steps, per_device_train_batch_size=8)
    rows = sources.load("addresses")[:8 * a.steps]
    first, second = ours(config, rows, "float32").losses, trl(config, rows, "float32").losses
    worst = max(abs(x - y) / abs(y) for x, y in zip(first, second))
    print(f"quality: float32 losses of {len(first)} steps, largest relative difference {worst:.1e} ({'holds' if worst <= 1e-4 else 'DOES NOT HOLD'}: at most 1e-4)")
    speed = {"ftlearn": [], "TRL defaults": []}
    for _ in range(a.rounds):
        for name, run in (("ftlearn", ours), ("TRL defaults", trl)):
            times = run(config, rows, "bfloat16").times[1:]
            speed[name].append(8 / statistics.median(times))
            print(f"{name}: {speed[name][-1]:.2f} rows a second", flush=True)
    mid = {k: statistics.median(v) for k, v in speed.items()}
    print(f"medians: {mid['ftlearn']:.2f} against {mid['TRL defaults']:.2f} rows a second: ratio {mid['ftlearn'] / mid['TRL defaults']:.2f}")


if __name__ == "__main__": main()
