"""Defaults by the kind of data: missing settings are filled in, given ones are kept."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import pytest

from nbllama.errors import UsageError
from nbllama.kernels.cores import physical_cores
from nbllama.lora.slots import EVERY_SLOT, FUSED_SLOTS
from nbllama.options.finetune.table import Options, parse
from nbllama.train.run.defaults import context, iterations
from nbllama.train.run.plan import with_plan
from nbllama.train.run.settings import Settings, fresh_seed, resolve

SEVEN = ["wq", "wk", "wv", "wo", "w1", "w2", "w3"]
NORMS = ["att_norm", "ffn_norm", "out_norm"]
EXPERTS = [slot.name for slot in FUSED_SLOTS if slot.name != "wqkv"]
OFF = [*NORMS, "tok_embd", "out", "wqkv", *EXPERTS]
DENSE = {"wqkv", *EXPERTS}  # not in models of the old tool's kind
FUSED = {"wq", "wk", "wv", "w1", *EXPERTS}


def settings(words: str = "", kind: str = "raw", n_samples: int = 1000, **more: Any) -> Settings:
    rest: dict[str, Any] = dict(missing=DENSE, cores=3, new_seed=99)
    return resolve(parse(["--model-base", "m", *words.split()]), kind, n_samples, **(rest | more))


def test_plain_text_takes_the_old_tools_defaults() -> None:
    got = settings()
    derived = {f.name: getattr(got, f.name) for f in dataclasses.fields(got)}
    assert derived.pop("options") == with_plan(parse(["--model-base", "m"]), "raw", 1000)
    assert derived == dict(
        data_kind="raw",
        n_iter=256,
        last=256,
        threads=3,
        seed=99,
        ctx=128,
        lora_r=4,
        alpha=4.0,
        lora_alpha=4.0,
        lora_layers="all",
        ranks=dict.fromkeys([*SEVEN, "tok_embd", "out"], 4) | dict.fromkeys([*NORMS, *DENSE], 0),
        adam_alpha=1e-3,
        adam_beta2=0.999,
        warmup=100,
        cos_decay_steps=1000,
        cos_decay_min=0.1,
        template_date="",
        eval_every=26,
        notes=(),
    )


def test_a_checkpoint_holds_these_settings_in_this_order() -> None:
    """The keys of existing checkpoints: nothing here may change, new ones come at the end."""
    assert list(settings("--rslora --lora-alpha 8 --batch 3").saved().items()) == [
        ("batch", 3), ("grad_acc", 1), ("ctx", 128), ("adam_alpha", 1e-3), ("adam_min_alpha", 0.0),
        ("adam_beta1", 0.9), ("adam_beta2", 0.999), ("adam_decay", 0.1),
        ("adam_decay_min_ndim", 2), ("adam_gclip", 1.0), ("warmup", 100),
        ("cos_decay_steps", 1000), ("cos_decay_min", 0.1), ("cos_decay_restart", 1.1),
        ("enable_restart", False), ("seed", 99), ("sample_start", ""),
        ("include_sample_start", False), ("overlapping_samples", False),
        ("fill_with_next_samples", False), ("separate_with_eos", False),
        ("separate_with_bos", True), ("sample_random_offsets", False), ("packing", False),
        ("template_date", ""), ("compat", False), ("optimizer", "adamw"),
        ("lr_schedule", "cosine"), ("wsd_decay", 0.1), ("lora_dropout", 0.0),
        ("lora_layers", "all"), ("loraplus_lr_ratio", 1.0), ("rslora", True), ("alpha", 8.0),
        ("eval_every", 26), ("val_split", 0.0), ("early_stop", 0), ("last", 256),
        ("share_prompts", True), ("group_prompts", False), ("objective", "sft"),
    ]  # fmt: skip


def test_chat_takes_todays_defaults() -> None:
    got = settings(kind="chat")
    assert got.n_iter == 250  # 2 epochs of 1000 samples, 8 each
    assert (got.lora_r, got.lora_alpha) == (16, 32.0)
    assert got.ranks == dict.fromkeys(SEVEN, 16) | dict.fromkeys(OFF, 0)
    assert (got.adam_alpha, got.warmup, got.cos_decay_steps) == (1e-3, 8, 250)
    assert (got.cos_decay_min, got.ctx) == (0.0, 512)
    assert got.notes == ()


def test_what_is_given_is_kept() -> None:
    for kind in ("raw", "chat"):
        got = settings(
            "--lora-r 6 --lora-alpha 9 --rank-wq 3 --rank-w2 0 --rank-tok-embd 2 --rank-out 5 "
            "--rank-att-norm 1 --adam-alpha 0.01 --adam-min-alpha 0.001 --warmup 7 "
            "--cos-decay-steps 70 --cos-decay-min 0.5 --ctx 99 -t 9 -s 5 --adam-iter 44 "
            "--no-checkpointing --save-every -3",
            kind,
        )
        assert got.ranks == {
            "tok_embd": 2, "out": 5, "att_norm": 1, "ffn_norm": 0, "out_norm": 0,
            "wq": 3, "wk": 6, "wv": 6, "wo": 6, "w1": 6, "w2": 0, "w3": 6,
            **dict.fromkeys(DENSE, 0),
        }  # fmt: skip
        assert (got.lora_alpha, got.adam_alpha, got.options.adam_min_alpha) == (9.0, 0.01, 0.001)
        assert (got.warmup, got.cos_decay_steps, got.cos_decay_min) == (7, 70, 0.5)
        assert (got.ctx, got.threads, got.seed, got.n_iter) == (99, 9, 5, 44)
        assert got.options.use_checkpointing is False
        assert got.options.save_every == -3


def test_slots_are_those_of_the_adapter() -> None:
    assert set(settings().ranks) == {slot.name for slot in EVERY_SLOT}


def test_a_model_with_fused_projections() -> None:
    ranks = settings("--lora-r 3 --rank-wo 5", missing=FUSED).ranks
    on = {slot: rank for slot, rank in ranks.items() if rank}
    assert on == {"tok_embd": 3, "out": 3, "wo": 5, "w2": 3, "w3": 3, "wqkv": 3}
    assert settings("--rank-wqkv 2", missing=FUSED).ranks["wqkv"] == 2
    # The request is kept, and then refused by `init_adapter`, which has the tensors.
    assert settings("--rank-wq 2", missing=FUSED).ranks["wq"] == 2


def test_alpha_follows_the_rank() -> None:
    assert settings("--lora-r 10").lora_alpha == 10
    assert settings("--lora-r 10", "chat").lora_alpha == 20


def test_norms_train_for_the_old_format_only() -> None:
    for kind in ("raw", "chat"):
        got = settings("--lora-out lora-LATEST.bin --rank-out-norm 0", kind)
        assert [got.ranks[n] for n in NORMS] == [1, 1, 0]
        assert [settings("--lora-out x.bin.gguf", kind).ranks[n] for n in NORMS] == [0, 0, 0]


def test_tied_embeddings() -> None:
    got = settings(missing={"out", *DENSE})
    assert (got.ranks["tok_embd"], got.ranks["out"], got.notes) == (0, 0, ())
    # The request is kept; the adapter's checks, which have the tensors, warn or refuse.
    assert settings("--rank-tok-embd 4", missing={"out", *DENSE}).ranks["tok_embd"] == 4
    assert settings("--rank-out 4", missing={"out", *DENSE}).ranks["out"] == 4


@pytest.mark.parametrize(
    ("words", "kind", "n_iter"),
    [
        ("", "raw", 256),
        ("--epochs 2", "raw", 250),  # lifts the cap of 256
        ("--epochs 3", "raw", 375),
        ("--adam-iter 20 --epochs 3", "raw", 20),
        ("--adam-iter 2000 --epochs 3", "raw", 375),
        ("--adam-iter 2000", "raw", 2000),
        ("--adam-iter 2000", "chat", 2000),
        ("--adam-iter 2000 --epochs -1", "chat", 2000),
        ("--epochs 2 --batch 3", "chat", 668),  # the last one of a pass is short
        ("--epochs 1 --batch 4 --grad-acc 2", "chat", 125),
        ("--epochs 1 --batch 4096", "chat", 1),
    ],
)
def test_length_of_the_run(words: str, kind: str, n_iter: int) -> None:
    options = parse(["--model-base", "m", *words.split()])
    assert iterations(with_plan(options, kind, 1000), kind, 1000) == n_iter
    assert settings(words, kind).n_iter == n_iter


def test_a_run_without_end_is_refused() -> None:
    for kind in ("raw", "chat"):
        with pytest.raises(UsageError, match="would never end"):
            settings("--epochs -1", kind)


def test_a_continued_run_goes_on_with_its_schedule() -> None:
    whole = settings("--adam-iter 100", "chat")
    rest = settings("--adam-iter 60", "chat", done=40)
    assert (rest.warmup, rest.cos_decay_steps) == (whole.warmup, whole.cos_decay_steps) == (3, 100)
    assert rest.n_iter == 60
    assert settings(done=40).cos_decay_steps == 1000


def test_contradictions_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing to train"):
        settings(" ".join(f"--rank-{s} 0" for s in [*SEVEN, "tok-embd", "out"]))
    with pytest.raises(UsageError, match=r"--adam-min-alpha 0\.01 is above --adam-alpha 0\.001"):
        settings("--adam-min-alpha 0.01")
    with pytest.raises(ValueError, match="samples"):
        settings(n_samples=0)


def test_a_warm_up_longer_than_the_run_is_said() -> None:
    assert (
        "the warm-up lasts 100 iterations, but the run has only 30"
        in settings("--adam-iter 30").notes[0]
    )
    assert settings("--adam-iter 30", done=70).notes == ()


def test_what_is_chosen_is_shown() -> None:
    shown = dict(settings("--adam-min-alpha 0.0002 --rank-wq 2").pairs())
    assert shown["data"] == "plain text"
    assert dict(settings("", "chat").pairs())["data"] == "records"
    assert dict(settings("", "chat").pairs(0, "records, format chat"))["data"].endswith(" chat")
    assert shown["run"] == "256 iterations of 8 x 1 samples"
    assert shown["adapter"] == (
        "r 4, alpha 4, on tok_embd:4 out:4 wq:2 wk:4 wv:4 wo:4 w1:4 w2:4 w3:4"
    )
    assert shown["rate"] == "0.001, warm-up 100, cosine to 0.00028 at iteration 1000"
    assert shown["seed"] == "99"
    shown = dict(settings("--enable-restart", "chat").pairs())
    assert shown["adapter"] == "r 16, alpha 32, on wq wk wv wo w1 w2 w3"
    assert shown["rate"].endswith("at iteration 250, each restart multiplies the length by 1.1")


def test_context_is_known_before_the_samples() -> None:
    assert context(Options(model_base="m"), "raw") == 128
    assert context(Options(model_base="m"), "chat") == 512
    assert context(Options(model_base="m", ctx=7), "chat") == 7


def test_cores_and_seed_of_this_machine() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
    seeds = {fresh_seed() for _ in range(20)}
    assert len(seeds) > 1
    assert all(0 <= s < 2**31 for s in seeds)


def test_compat_restores_the_old_defaults() -> None:
    got = settings("--compat")
    assert [got.ranks[n] for n in NORMS] == [1, 1, 1]
    assert got.ranks["tok_embd"] == got.ranks["wq"] == 4
    assert settings("--compat --rank-out-norm 0").ranks["out_norm"] == 0
    # The cap of 256 iterations also applies with --epochs; only our own defaults lift it.
    assert settings("--compat --epochs 3").n_iter == 256
    assert settings("--compat --epochs 2").n_iter == 250
    assert settings("--compat --epochs 0").n_iter == 256


def test_the_old_scale_is_one() -> None:
    for given, kept in (("", 4), ("--lora-r 6", 6), ("--lora-r 6 --lora-alpha 12", 6)):
        # the plan of a run that continues an old checkpoint shares nothing
        continued = settings("--no-share-prompts " + given, unscaled=True)
        for got in (settings("--compat " + given), continued):
            assert got.lora_alpha == got.lora_r == kept
            assert bool(got.notes) == ("alpha" in given)
    assert settings("--lora-r 6 --lora-alpha 12").lora_alpha == 12


def test_what_has_no_effect_is_said() -> None:
    for word in ("--use-flash", "--no-flash"):
        assert "no effect" in settings(word).notes[0]
    assert settings().notes == ()


def test_epochs_of_another_length() -> None:
    assert settings("--epochs 3", walk=lambda n: 7 * n).n_iter == 21
    assert settings("--epochs 3 --adam-iter 9", walk=lambda n: 7 * n).n_iter == 9
    assert settings("--adam-iter 9", walk=lambda n: 7 * n).n_iter == 9


def test_rank_stabilised_lora_scales_by_the_root_of_the_rank() -> None:
    got = settings("--rslora --lora-r 64 --lora-alpha 16")
    assert (got.alpha, got.lora_alpha) == (16.0, 128.0)
    assert got.lora_alpha / got.lora_r == 16 / math.sqrt(64)


def test_lion_takes_a_tenth_of_the_rate_and_its_own_beta() -> None:
    got = settings("--optimizer lion", kind="chat")
    assert (got.adam_alpha, got.adam_beta2) == (1e-3 / 10, 0.99)
    got = settings("--optimizer lion --lr 3e-3 --adam-beta2 0.5")
    assert (got.adam_alpha, got.adam_beta2) == (3e-3, 0.5)


@pytest.mark.parametrize("kind", ["linear", "wsd"])
def test_other_schedules_end_with_the_run(kind: str) -> None:
    got = settings(f"--lr-schedule {kind}")
    assert (got.cos_decay_steps, got.cos_decay_min) == (256, 0.0)
    with pytest.raises(UsageError, match="--enable-restart"):
        settings(f"--lr-schedule {kind} --enable-restart")


@pytest.mark.parametrize(
    "words",
    ["--optimizer sgd", "--lr-schedule linear", "--lora-dropout 0.1", "--rslora", "--val-split 0.1",
     "--loraplus-lr-ratio 16", "--lora-layers last:1"],
)  # fmt: skip
def test_compat_has_nothing_new(words: str) -> None:
    with pytest.raises(UsageError, match=words.split()[0]):
        settings(f"--compat {words}")


def test_routed_experts_get_pairs_when_asked_for() -> None:
    experts = ["gate_exps", "down_exps", "up_exps"]
    got = settings("--lora-r 3", missing={"wqkv"})
    assert [got.ranks[name] for name in experts] == [0, 0, 0] and got.ranks["up_shexp"] == 3
    assert got.notes == ("routed experts have no pairs; --rank-experts adds a pair to each",)
    got = settings("--rank-experts 2 --rank-up-exps 5", missing={"wqkv"})
    assert [got.ranks[name] for name in experts] == [2, 2, 5] and got.notes == ()
    assert settings("--rank-experts 0", missing={"wqkv"}).notes == ()
    with pytest.raises(UsageError, match="this model has no experts"):
        settings("--rank-experts 2")
