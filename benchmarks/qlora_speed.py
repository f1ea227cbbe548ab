"""QLoRA on the CPU: ftlearn against PEFT over bitsandbytes' 4-bit layers. Same weights (NF4 with 8-bit scales), same adapter (rank 16 on all linear layers), same batches of 8 address rows; both models live in one process and take their rounds in turns.

The rival is what PEFT's guide sets up (`BitsAndBytesConfig`, bfloat16 arithmetic, `get_peft_model`), without gradient checkpointing, to its profit. Prints seconds a step and the ratio of each round; mark: at least as fast.
Quality: how far the gradient lies from that of the same unpacked weights in float32 (length of the difference over length; the worst single tensor is told beside it), the mean over 20 draws of the adapter, each with a batch of its own: ours may be no further away than the rival's by more than a tenth. One draw says nothing: the roundings of the same code with other adapters lie between 0.044 and 0.075. Exit 1 where something does not hold.
`python benchmarks/qlora_speed.py [--model smollm2-135m-instruct] [--rounds 3] [--steps 4] [--draws 20]`"""
import argparse, os, statistics, sys, time

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error")
from rounds import told, verdict

MARK = 1.0


def adapters(model): return {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}


def draw(models, seed):
    "Give all models the same adapter; B is not zero, so that A has a gradient."
    import torch
    torch.manual_seed(seed)
    first = {n: torch.randn_like(p) * .02 for n, p in adapters(models[0]).items()}
    with torch.no_grad():
        for model in models:
            for name, p in adapters(model).items(): p.copy_(first[name])


def models(name):
    "{who: (model, function that gives a batch's loss)}."
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from ftlearn.config import Config
    from ftlearn.core import pick_device
    from ftlearn.model.adapt import adapt, choose_quant, quantize
    from ftlearn.model.fast import speed_up
    from ftlearn.model.load import fetch, load_model
    from ftlearn.train.loss import answer_loss
    from ftlearn.train.sft import compute_in_base_dtype
    config = Config(method="qlora")
    def ours(dtype):
        base = load_model(name, device=pick_device("cpu", dtype)).model
        return adapt(quantize(base, "dequantized" if dtype == "float32" else choose_quant(base, config)[0]), "qlora", config)
    def loss_of(model, batch):
        with torch.autocast("cpu", torch.bfloat16): return answer_loss(model, batch)[0]
    def plain_loss(model, batch):
        with torch.autocast("cpu", torch.bfloat16): return model(**batch).loss
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
    theirs = adapt(AutoModelForCausalLM.from_pretrained(fetch(name), quantization_config=four_bits, dtype=torch.bfloat16, device_map="cpu"), "lora", config)
    fast = ours("bfloat16")
    compute_in_base_dtype(fast)
    speed_up(fast)
    return {"float32": (ours("float32").train(), lambda model, batch: answer_loss(model, batch)[0]), "ftlearn": (fast.train(), loss_of), "PEFT, bitsandbytes": (theirs.train(), plain_loss)}


def batches(name, n):
    "`n` batches of 8 address rows each, of like length."
    from train_speed import rows_of
    from ftlearn.data.encode import collate, encode_rows
    from ftlearn.model.load import fetch, load_tokenizer
    tokenizer = load_tokenizer(fetch(name))
    rows = sorted(encode_rows(rows_of(400)[0], tokenizer), key=lambda r: len(r.input_ids))
    middle = len(rows) // 2 - 4*n
    return [collate(rows[middle + 8*i:middle + 8*(i + 1)], tokenizer.pad_token_id) for i in range(n)]


def gradients(model, loss_of, batch):
    "(loss, gradient by adapter tensor) of one batch."
    loss = loss_of(model, batch)
    loss.backward()
    found = {n: p.grad.float().clone() for n, p in adapters(model).items()}
    model.zero_grad()
    return loss.item(), found


def step(model, loss_of, optimizer, batch):
    began = time.perf_counter()
    loss_of(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - began


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default="smollm2-135m-instruct")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=4, help="of each, in a round")
    p.add_argument("--draws", type=int, default=20, help="of the adapter, for the quality")
    a = p.parse_args()
    import torch
    there, found = models(a.model), {}
    reference = there.pop("float32")
    for seed, batch in enumerate(batches(a.model, a.draws)):
        draw([model for model, _ in (reference, *there.values())], seed)
        loss, exact = gradients(*reference, batch)
        for who, pair in there.items():
            its, g = gradients(*pair, batch)
            apart = (sum((g[n] - e).norm()**2 for n, e in exact.items()) / sum(e.norm()**2 for e in exact.values())).sqrt().item()
            found.setdefault(who, []).append((apart, max(((g[n] - e).norm() / e.norm()).item() for n, e in exact.items()), abs(its - loss) / loss))
    del reference
    off = {who: statistics.mean(apart for apart, *_ in draws) for who, draws in found.items()}
    for who, draws in found.items():
        apart, worst, losses = zip(*draws)
        print(f"{who}: losses within {max(losses):.4f} of float32, gradient off by {off[who]:.4f} ({min(apart):.4f} to {max(apart):.4f}), the worst tensor by {max(worst):.3f}", flush=True)
    data = batches(a.model, a.steps)
    optimizers = {who: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4) for who, (model, _) in there.items()}
    ratios = []
    for k in range(a.rounds):
        times = {who: statistics.median(step(*pair, optimizers[who], batch) for batch in data) for who, pair in there.items()}
        ratios.append(times["PEFT, bitsandbytes"] / times["ftlearn"])
        print(f"round {k + 1}: " + ", ".join(f"{who} {s:.2f} s a step" for who, s in times.items()), flush=True)
    holds = {f"against PEFT over bitsandbytes {told(ratios, MARK, 2)}": min(ratios) >= MARK,
             f"gradient off by {off['ftlearn']:.4f}, the rival's by {off['PEFT, bitsandbytes']:.4f} (at most 1.1 times that; means of {a.draws} draws)": off["ftlearn"] <= 1.1 * off["PEFT, bitsandbytes"]}
    for text, good in holds.items(): print(f"{verdict(good)}: {text}")
    return 0 if all(holds.values()) else 1


if __name__ == "__main__": sys.exit(main())
