"""The gradients of the trainer, in float32 on the tiny model: against transformers' own loss of one row at a time, worked out by hand."""
import contextlib

import pytest, torch
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ftlearn.config import resolve
from ftlearn.core import seed_everything, write_jsonl
from ftlearn.data.encode import collate, encode_rows
from ftlearn.data.mix import row_weights
from ftlearn.data.pack import pack
from ftlearn.evaluate.generate import generate
from ftlearn.model.adapt import adapt
from ftlearn.model.load import load_model
from ftlearn.tiny import tiny_model, tiny_rows, tiny_tokenizer
from ftlearn.train.sft import answer_loss, load_tuned, predicting, train

WEIGHTS = (1, 1, 5, 0.5, 0, 1, 2, 3)


def uneven(n):
    "Toy rows whose questions and answers have different lengths."
    rows = tiny_rows(n)
    for i, r in enumerate(rows):
        r["messages"][0]["content"] += " please" * (i % 3)
        r["messages"][1]["content"] *= 1 + i % 4
    return rows


def relative(a, b): return ((a - b).norm() / b.norm()).item()


@contextlib.contextmanager
def gradients(instead=()):
    "The gradients that each optimizer step inside the block was given, a vector a step; it then steps with those of `instead` (another run's), so that both runs pass through the same weights."
    seen, instead = [], iter(instead)
    def look(optimizer, args, kwargs):
        trained = [p for g in optimizer.param_groups for p in g["params"]]
        seen.append(torch.cat([p.grad.flatten().clone() for p in trained]))
        if (other := next(instead, None)) is None: return
        for p, g in zip(trained, other.split([p.numel() for p in trained])): p.grad.copy_(g.view_as(p))
    handle = register_optimizer_step_pre_hook(look)
    try: yield seen
    finally: handle.remove()


def one_run(rows, out, instead=(), **settings):
    "The gradients of a run of one step (unless told otherwise) over all rows."
    write_jsonl(out.with_suffix(".jsonl"), rows)
    usual = {"model": "tiny", "method": "full", "dtype": "float32", "data": str(out.with_suffix(".jsonl")), "split": "100/0/0", "out": str(out), "max_steps": 1,
             "max_length": 512, "max_grad_norm": 0.0, "learning_rate": 1e-3}
    with gradients(instead) as seen: run = train(resolve(usual | settings, settings=False), progress=False, say=str)
    return seen, run


def in_order(model): return [p for p in model.parameters() if p.requires_grad]


def by_hand(rows, weights=None):
    "The gradient of all weights of the tiny model: each row alone through transformers, its loss summed over its labels, the sums weighted and divided."
    model, tok = load_model("tiny", dtype="float32").model.train(), tiny_tokenizer()
    encoded = list(encode_rows(rows, tok))
    weights = weights or [1] * len(rows)
    total = 0
    for e, w in zip(encoded, weights):
        logits = model(input_ids=torch.tensor([e.input_ids])).logits[0, :-1]
        total = total + w * cross_entropy(logits, torch.tensor(e.labels)[1:], ignore_index=-100, reduction="sum")
    (total / sum(w * e.n_trained for w, e in zip(weights, encoded))).backward()
    return {n: p.grad for n, p in model.named_parameters()}


def same_order(found, want):
    "The optimizer puts the parameters with and without weight decay in two groups; the hand computation knows names."
    decayed = [g for n, g in want.items() if not ("norm" in n or n.endswith("bias"))]
    rest = [g for n, g in want.items() if "norm" in n or n.endswith("bias")]
    flat = torch.cat([g.flatten() for g in decayed + rest])
    assert flat.shape == found.shape
    return flat


# --- a loss only where it should be

def test_only_the_answer_has_a_loss():
    model, tok = tiny_model().train(), tiny_tokenizer()
    batch = collate(list(encode_rows(uneven(6), tok)), tok.pad_token_id, multiple=8)
    keep, seen = predicting(batch["labels"]), []
    keep = keep[:, :keep.nonzero()[:, 1].max() + 1]   # what stands behind is not computed
    handle = model.model.norm.register_forward_hook(lambda m, a, out: (out.retain_grad(), seen.append(out))[0])
    answer_loss(model, batch)[0].backward()
    handle.remove()
    at = seen[0].grad.abs().sum(-1) > 0
    assert torch.equal(at, keep) and 0 < keep.sum() < keep.numel()


def test_what_follows_the_answer_does_not_matter():
    model, tok = tiny_model().train(), tiny_tokenizer()
    batch = collate(list(encode_rows(uneven(6), tok)), tok.pad_token_id, multiple=8)
    other = {k: v.clone() for k, v in batch.items()}
    last = torch.tensor([max(i for i, l in enumerate(row) if l != -100) for row in batch["labels"].tolist()])
    behind = torch.arange(batch["labels"].shape[1])[None] > last[:, None]
    other["input_ids"][behind] = 7
    def flat(b):
        model.zero_grad()
        answer_loss(model, b)[0].backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])
    assert behind.any() and relative(flat(other), flat(batch)) < 1e-6


def test_the_prompt_has_no_label_and_the_end_of_turn_has_one():
    tok = tiny_tokenizer()
    for e in encode_rows(uneven(12), tok):
        trained = [i for i, l in enumerate(e.labels) if l != -100]
        assert e.labels[trained[-1]] == tok.eos_token_id and trained == list(range(trained[0], trained[-1] + 1))
        assert tok.decode(e.input_ids[:trained[0]]).endswith("<|im_start|>assistant\n")


# --- the same step however it is cut

@pytest.mark.parametrize("method", ["full", "lora"])
def test_one_batch_of_8_is_8_batches_of_1(tmp_path, method):
    rows = uneven(8)
    (whole,), _ = one_run(rows, tmp_path / "a", method=method, per_device_train_batch_size=8)
    for k, (size, passes) in enumerate([(1, 8), (2, 4)]):
        (cut,), _ = one_run(rows, tmp_path / f"b{k}", method=method, per_device_train_batch_size=size, gradient_accumulation_steps=passes)
        assert relative(cut, whole) < 1e-5
    if method == "full": assert relative(whole, same_order(whole, by_hand(rows))) < 1e-5


def test_packed_rows_give_the_same_gradient(tmp_path):
    rows, tok = uneven(8), tiny_tokenizer()
    (whole,), _ = one_run(rows, tmp_path / "a", per_device_train_batch_size=8)
    packed, model = pack(list(encode_rows(rows, tok)), 256), load_model("tiny", dtype="float32", attn="sdpa").model.train()
    batch = packed.batch()
    assert len(packed) > 1
    labels = batch.pop("labels")
    (cross_entropy(model(**batch).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum") / packed.n_trained).backward()
    assert relative(same_order(whole, {n: p.grad for n, p in model.named_parameters()}), whole) < 1e-5


# --- rows that count more

@pytest.mark.parametrize("size,passes", [(8, 1), (1, 8), (2, 4)])
def test_weighted_rows(tmp_path, size, passes):
    rows = uneven(8)
    weighted = [r | {"weight": w} for r, w in zip(rows, WEIGHTS)]
    (found,), run = one_run(weighted, tmp_path / "w", per_device_train_batch_size=size, gradient_accumulation_steps=passes)
    want = same_order(found, by_hand(rows, WEIGHTS))
    assert relative(found, want) < 1e-5
    assert relative(found, same_order(found, by_hand(rows))) > 0.05           # it is not the gradient without weights


def test_a_step_of_common_rows_stays_light(tmp_path):
    "Divided by its own weights, a batch of rows that weigh 1 beside others that weigh 9 would count in full."
    tok, rows = tiny_tokenizer(), [r | {"weight": w} for r, w in zip(tiny_rows(8), (1, 1, 1, 1, 9, 9, 9, 9))]
    encoded = encode_rows(rows, tok)
    weights, model = row_weights(rows, encoded), tiny_model()
    light, alone = (answer_loss(model, collate(encoded[:4], tok.pad_token_id) | more)[0].item() for more in ({"weight": torch.tensor(weights[:4])}, {}))
    assert light == pytest.approx(0.2 * alone, rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_with_a_frozen_and_a_trained_output_layer(method):
    "A frozen one is computed in parts, a trained one as a whole; a shared prefix changes neither."
    tok, rows = tiny_tokenizer(), [r | {"weight": w} for r, w in zip(uneven(8), WEIGHTS)]
    seed_everything(0)
    model, encoded = adapt(tiny_model(), method), encode_rows(rows, tok)
    batch = collate(encoded, tok.pad_token_id)
    each = [answer_loss(model, {k: v[i:i + 1] for k, v in batch.items()}, 1)[0].item() for i in range(8)]
    want = sum(w * l for w, l in zip(WEIGHTS, each)) / sum(w * e.n_trained for w, e in zip(WEIGHTS, encoded))
    weighted = batch | {"weight": torch.tensor(row_weights(rows, encoded))}
    for prefix in (0, 12): assert answer_loss(model, weighted, prefix=prefix)[0].item() == pytest.approx(want, rel=1e-5)


def test_weights_of_one_change_nothing(tmp_path):
    rows = uneven(8)
    (plain,), _ = one_run(rows, tmp_path / "a", per_device_train_batch_size=8)
    (ones,), _ = one_run([r | {"weight": 2.0} for r in rows], tmp_path / "b", per_device_train_batch_size=8)
    assert torch.equal(plain, ones)


# --- QLoRA, before and after an evaluation

def test_4bit_gradient_after_an_evaluation(tmp_path):
    "Every step is followed by an evaluation; the layers held in 4 bits must keep on letting the whole gradient through. Both runs take the steps of the first, so step by step the weights are the same."
    settings = dict(method="qlora", split="80/20/0", max_steps=4, eval_steps=1, save_steps=100, per_device_train_batch_size=4)       # a save would unpack repacked weights
    want, whole = one_run(uneven(20), tmp_path / "dequantized", quant="dequantized", **settings)
    found, run = one_run(uneven(20), tmp_path / "bnb", want, quant="bnb", **settings)
    assert len(run.log.validation) == len(found) == 4 and not torch.equal(want[0], want[3])
    assert all(g.dtype == torch.float32 for g in found)                                            # TRL would train the adapter of a 4-bit model in bfloat16
    assert max(relative(a, b) for a, b in zip(found, want)) < 1e-4
    assert [e["eval_loss"] for e in run.log.validation] == pytest.approx([e["eval_loss"] for e in whole.log.validation], rel=1e-5)


# --- the end of the turn is learned

def test_a_tuned_model_stops_by_itself(tmp_path):
    rows = tiny_rows(456)
    _, run = one_run(rows[:256], tmp_path / "run", learning_rate=3e-3, max_steps=160, max_grad_norm=1.0, per_device_train_batch_size=16)
    answers = generate(load_tuned(run, say=str), rows[256:], max_new_tokens=64, batch_size=100, progress=False)
    stopped = sum(a["finish_reason"] == "stop" for a in answers)
    assert len(answers) == 200 and stopped >= 198, f"{stopped} of 200 stopped by themselves"
