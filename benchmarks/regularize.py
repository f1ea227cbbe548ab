"""Weight decay, dropout, NEFTune, the best weights and replay on the tiny model, four seeds each unless told otherwise: what `nbs/42b_train.regularize.ipynb` shows.

Each seed has its own rows, order and start, the same for all variants. `python benchmarks/regularize.py [--seeds 4] [--out benchmarks/regularize.json] [--keep FOLDER]`;
with `--keep` the runs stay in that folder, and finished ones are not repeated. About 4 minutes on one core."""
import argparse, contextlib, os, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(HERE.parent))
BASE = {"model": "tiny", "method": "lora", "dtype": "float32", "split": "16/84/0", "max_length": 512, "learning_rate": 1e-2, "max_steps": 60, "eval_steps": 6, "lr_scheduler_type": "constant"}
BY_HEART = {"as it is": {}, "weight decay 0.1": {"weight_decay": 0.1}, "weight decay 0.5": {"weight_decay": 0.5}, "dropout 0.1": {"lora_dropout": 0.1}, "dropout 0.3": {"lora_dropout": 0.3},
            "NEFTune 5": {"neftune_noise_alpha": 5.0}, "NEFTune 15": {"neftune_noise_alpha": 15.0}, "best weights": {"load_best": True}}
FULL = {"model": "tiny", "method": "full", "dtype": "float32", "max_length": 512, "learning_rate": 3e-3, "split": "90/10/0", "per_device_train_batch_size": 16}
SHARES = {"new rows only": 0, "5 % old rows": 0.05, "20 % old rows": 0.2, "50 % old rows": 0.5}


def by_heart(folder, seeds):
    "24 training rows of the toy task, 128 to validate; 60 steps of 8 rows."
    from ftlearn.core import write_jsonl
    from ftlearn.tiny import tiny_rows
    from ftlearn.train.regularize import effects
    write_jsonl(folder / "few.jsonl", tiny_rows(152))
    return effects(BASE | {"data": str(folder / "few.jsonl")}, BY_HEART, folder / "by-heart", seeds)


def thing(row):
    said = row["messages"][0]["content"]
    return {"id": "t-" + row["id"], "messages": [{"role": "user", "content": "thing: " + said}, {"role": "assistant", "content": said.split()[-1]}]}


def replay(folder, seeds):
    "A model that has learned the toy task learns another one; the old one is measured on 64 rows that it never saw."
    import torch
    from ftlearn.config import resolve
    from ftlearn.core import write_jsonl
    from ftlearn.data.encode import collate, encode_rows
    from ftlearn.tiny import tiny_rows, tiny_tokenizer
    from ftlearn.train.regularize import effects
    from ftlearn.train.sft import answer_loss, load_tuned, train
    write_jsonl(folder / "old.jsonl", tiny_rows(256)), write_jsonl(folder / "new.jsonl", [thing(r) for r in tiny_rows(512)[256:448]])
    first = train(resolve(FULL | {"data": str(folder / "old.jsonl"), "out": str(folder / "first"), "max_steps": 100, "eval_steps": 100}, settings=False), progress=False, say=str)
    tok = tiny_tokenizer()
    batch = collate(list(encode_rows(tiny_rows(576)[512:], tok)), tok.pad_token_id)
    def old_task(run):
        with torch.no_grad(): return {"old task": answer_loss(load_tuned(run, say=str).model, batch)[0].item()}
    second = FULL | {"model": str(first.adapter), "data": str(folder / "new.jsonl"), "learning_rate": 1e-3, "max_steps": 24, "eval_steps": 24}
    variants = {name: {"replay": str(folder / "old.jsonl"), "replay_share": share} if share else {} for name, share in SHARES.items()}
    return effects(second, variants, folder / "replay", seeds, old_task, "old task"), old_task(first)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--seeds", type=int, default=4)
    args.add_argument("--out", type=Path, default=HERE / "regularize.json")
    args.add_argument("--keep", type=Path)
    args, start = args.parse_args(), time.time()
    from ftlearn.core import versions, write_json
    with contextlib.nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        heart = by_heart(folder, range(args.seeds))
        print(heart._repr_markdown_(), flush=True)
        again, before = replay(folder, range(args.seeds))
        print(again._repr_markdown_())
    rounded = lambda e: {name: [{k: round(v, 5) for k, v in r.items()} for r in rows] for name, rows in e.found.items()}
    write_json(args.out, {"date": time.strftime("%Y-%m-%d"), "seconds": round(time.time() - start), "packages": versions("torch", "transformers", "peft", "trl"),
                          "by heart": {"settings": BASE, "variants": BY_HEART, "found": rounded(heart)},
                          "replay": {"settings": FULL, "before": before, "found": rounded(again)}})


if __name__ == "__main__": main()
