"""256 answers of mixed length on the CPU: `generate` against transformers' own `generate`, one by one and in padded batches in file order.

The rows are addresses, definitions, reviews and verses in turn, asked through the chat template; smollm2-135m-instruct answers them greedily in float32 until it stops or has said 64 tokens. The rival's model is
loaded in its own default way; its batches have as many rows as ours and are padded on the left. Rounds alternate, and each must reach the marks; the median is the figure. One by one takes minutes, so each round times an eighth of the rows of each set (another in each
round) and sets it against our time for all rows, by the token. Everything is timed from rows to texts.
Marks: 5 times as fast as one by one, 1.3 times as fast as padded batches. Condition: the same tokens from all three.
Exits 1 below a mark. `python benchmarks/generation_speed.py [--rows 256] [--rounds 3] [--batch 32] [--tokens 64] [--model smollm2-135m-instruct]`"""
import argparse, os, statistics, sys

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
import torch

from ftlearn.core import UserError
from ftlearn.data.encode import encode_prompt
from ftlearn.data.formats import prompt_of
from ftlearn.data.sources import load
from ftlearn.evaluate.generate import Store, _stops, _who, answer_key, generate
from ftlearn.model.load import fetch, load_model
from rounds import timed, told, verdict

MARKS = {"one by one": 5, "padded, file order": 1.3}
EVERY = 8


def mixed(n):
    "`n` rows, the four sets in turn."
    sets = [load(name) for name in ("addresses", "definitions", "reviews", "verses")]
    return [{**sets[i % 4][i // 4], "id": str(i)} for i in range(n)]


class Kept(Store):
    "The store of `generate`, in memory: it holds the tokens, where a prediction holds the text."
    def __init__(self): self.answers, self.hits, self.misses = {}, 0, 0
    def put(self, new): self.answers.update(new)


def rival(path, tok, stops):
    "transformers' `generate` over batches of `size` rows: a function from rows to tokens and texts."
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()
    def run(rows, size, limit):
        asked, out = [tok.apply_chat_template(prompt_of(r), add_generation_prompt=True, tokenize=False) for r in rows], []
        for at in range(0, len(asked), size):
            batch = tok(asked[at:at + size], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
            with torch.inference_mode(): made = model.generate(**batch, max_new_tokens=limit, do_sample=False, eos_token_id=stops, pad_token_id=tok.pad_token_id)
            new = made[:, batch["input_ids"].shape[1]:]
            out += zip((until(row, stops) for row in new.tolist()), tok.batch_decode(new, skip_special_tokens=True))
        return out
    return run


def until(tokens, stops):
    "The tokens up to and with the first that ends an answer."
    return tokens[:next((i for i, t in enumerate(tokens) if t in stops), len(tokens) - 1) + 1]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 256), ("rounds", 3), ("batch", 32), ("tokens", 64)): p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--model", default="smollm2-135m-instruct")
    args = p.parse_args()
    loaded, rows = load_model(args.model, "cpu", "float32"), mixed(args.rows)
    tok, stops = loaded.tokenizer, _stops(loaded)
    theirs = rival(fetch(args.model), tok, stops)
    kept, prompts = Kept(), [encode_prompt(prompt_of(r), tok) for r in rows]
    keys = [answer_key(_who(loaded, args.tokens), p) for p in prompts]
    def ours(some, size, limit):
        kept.answers.clear()
        return generate(loaded, some, limit, size, store=kept, progress=False)
    for run in (ours, theirs): run(rows[:2], 2, 2)                                     # warm up
    rate, wrong = {"ftlearn": [], **{name: [] for name in MARKS}}, set()
    for k in range(args.rounds):
        sample = [i for i in range(len(rows)) if (i // 4 + k) % EVERY == 0]
        for name, run, places, size in (("ftlearn", ours, range(len(rows)), args.batch), ("padded, file order", theirs, range(len(rows)), args.batch), ("one by one", theirs, sample, 1)):
            seconds, out = timed(run, [rows[i] for i in places], size, args.tokens)
            if name == "ftlearn": mine = [(kept.answers[key].tokens, o["prediction"]) for key, o in zip(keys, out)]
            else: wrong |= {i for i, said in zip(places, out) if said != mine[i]}
            n = sum(len(mine[i][0]) for i in places)
            rate[name].append(n/seconds)
            print(f"round {k + 1}: {name:18} {len(places):4} rows, {n:6,} tokens in {seconds:6.1f} s: {n/seconds:6.1f} tokens a second", flush=True)
    sizes, asked = sorted(len(tokens) for tokens, _ in mine), sorted(map(len, prompts))
    print(f"{args.model} in float32, {torch.get_num_threads()} threads: {len(rows)} answers of {sizes[0]} to {sizes[-1]} tokens (median {statistics.median(sizes):g}) to prompts of {asked[0]} to {asked[-1]}; one by one on an eighth of the rows")
    ok = not wrong
    for name, mark in MARKS.items():
        ratios = [a/b for a, b in zip(rate["ftlearn"], rate[name])]
        ok &= min(ratios) >= mark
        print(f"{verdict(min(ratios) >= mark and not wrong)}: against {name} {told(ratios, mark, 2)}")
    print(f"the same answers from all three: {not wrong}" + (f"; differing rows {sorted(wrong)[:10]}" if wrong else ""))
    sys.exit(not ok)


if __name__ == "__main__":
    try: main()
    except UserError as e:
        print(e, file=sys.stderr)
        sys.exit(e.exit_code)
