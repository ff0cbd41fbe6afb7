"""The program with the old tool's options and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama.checkpoint.file import load_checkpoint
from nbllama.checkpoint.legacy_moments import parameter_order
from nbllama.data import MT19937
from nbllama.gguf_io import ValueType
from nbllama.lora.pairs import init_adapter
from nbllama.lora.slots import SLOTS
from nbllama.model.passes import load_model
from tests.checkpoint.old_states import old_keys, old_tensors, write
from tests.train.runs import Run, listing, refused
from tests.train.toy_runs import file_bits, log_rows, toy_chat, toy_text, words

RANKS = {slot.name: 1 if slot.kind == "norm" else 2 for slot in SLOTS}


@pytest.fixture
def folder(folder: Path) -> Path:
    toy_text(folder / "text.txt", 112)  # 52 samples with --ctx 16
    return folder


def old_checkpoint(folder: Path, **keys: Any) -> Path:
    """An old checkpoint of the toy model at iteration 3, with random moments."""
    model = load_model(folder / "toy.gguf")
    adapter = init_adapter(model.hp, RANKS, alpha=2.0, lora_r=2, seed=1, shapes=model.shapes)
    rng = np.random.default_rng(1)
    params = adapter.parameters()
    m = {n: rng.standard_normal(x.shape).astype(np.float32) * 1e-3 for n, x in params.items()}
    v = {n: x * x for n, x in m.items()}
    sizes = {
        "embedding_length": 64, "feed_forward_length": 96, "attention.head_count": 4,
        "attention.head_count_kv": 2, "block_count": 2, "rope.dimension_count": 16,
    }  # fmt: skip
    stored = old_keys(RANKS, adapter.n_parameters, sizes)
    stored["training.shuffle.sample_count"] = (52, ValueType.UINT64)
    stored |= keys
    tensors = old_tensors(adapter, m, v, parameter_order("left", 2), drop_ones=True)
    return write(folder / "old.gguf", stored, tensors)


# Early ends


@pytest.mark.parametrize(
    ("tests", "ours"),
    [
        ("--adam-epsf 1e9", 2),  # the second evaluation is the first that has one before it
        ("--opt-past 1 --opt-delta 1e9", 3),
        ("--opt-past 2 --opt-delta 1e9", 4),
        ("--opt-max-no-improvement 1 --adam-alpha 1e-30 --batch 52", 2),
        ("--opt-max-no-improvement 3 --adam-alpha 1e-30 --batch 52", 4),
    ],
)
def test_early_ends(folder: Path, run: Run, tests: str, ours: int) -> None:
    """With one batch that holds all samples and no learning no loss is a new lowest one: sums in
    another order may differ in the last digit, so the order is the same in all epochs here.
    """
    if "improvement" in tests:
        (folder / "text.txt").write_text("the hen", encoding="utf-8")
    done = run(words(folder, "--adam-iter", "9", "--log", "log", *tests.split()))
    assert done.code == 0, done
    assert [row["iter"] for row in log_rows(folder / "log")] == list(range(1, ours + 1))
    assert f"ended after iteration {ours}: " in done.out
    option = tests.split()[0]
    assert f"({option})" in done.out
    assert load_checkpoint(folder / "chk-LATEST.gguf").iteration == ours


def test_the_old_tool_ends_before_the_update(folder: Path, run: Run) -> None:
    """And its last evaluation's samples are skipped."""
    done = run(words(folder, "--adam-iter", "9", "--compat", "--adam-epsf", "1e9"))
    assert done.code == 0, done
    assert "ended after iteration 1: " in done.out
    state = load_checkpoint(folder / "chk-LATEST.gguf")
    assert (state.iteration, state.next_sample, state.sample_count) == (1, 4, 4)


def test_a_continued_run_remembers_its_losses(folder: Path, run: Run) -> None:
    tests = ["--opt-max-no-improvement", "4", "--adam-alpha", "1e-30", "--opt-past", "3"]
    tests += ["--opt-delta", "0"]
    (folder / "text.txt").write_text("the hen", encoding="utf-8")
    assert run(words(folder, "--adam-iter", "3", *tests)).code == 0
    state = load_checkpoint(folder / "chk-3.gguf")
    assert state.no_improvement == 2
    assert len(state.past_losses) == 3
    assert state.previous_loss == state.best_loss > 1
    more = ["--checkpoint-in", "chk-3.gguf", "--adam-iter", "9", *tests]
    done = run(words(folder, *more))
    assert (
        "ended after iteration 5: the loss has not reached a new minimum in 4 iterations"
        in done.out
    )


# Length in epochs


def epochs_of(folder: Path, run: Run, *more: str) -> tuple[int, int, int]:
    """(iterations, epochs, next sample) after a run of one or more epochs."""
    done = run([w for w in words(folder, "--adam-iter", "99", *more)])
    assert done.code == 0, done
    state = load_checkpoint(folder / "chk-LATEST.gguf")
    return state.iteration, state.epoch, state.next_sample


def test_epochs(folder: Path, run: Run) -> None:
    short = ("--batch", "10", "--epochs", "2", "--ctx", "16")
    assert epochs_of(folder, run, *short) == (12, 2, 0)  # 52 samples: 6 iterations, one short
    # The old tool's batches wrap, and one more is fetched before it ends.
    assert epochs_of(folder, run, *short, "--compat") == (12, 2, 10)
    # With two evaluations an iteration the first epoch ends within iteration 3, and the second
    # with iteration 6; of the next iteration one batch is fetched.
    assert epochs_of(folder, run, *short, "--compat", "--grad-acc", "2") == (6, 2, 10)


def test_epochs_of_filled_rows(folder: Path, run: Run) -> None:
    (folder / "text.txt").write_text("the hen\n" * 40, encoding="utf-8")
    more = ("--sample-start", r"\n", "--escape", "--fill-with-next-samples", "--epochs", "1")
    n, epoch, at = epochs_of(folder, run, *more)
    assert (epoch, at) == (1, 0)
    plain = epochs_of(folder, run, *more[:3], "--epochs", "1")
    assert plain == (20, 1, 0)  # 40 samples, the last one empty
    assert 1 <= n < 20


# Adapters without training


def test_only_write_lora(folder: Path, run: Run) -> None:
    assert run(words(folder, "--checkpoint-out", "chk-ITERATION.gguf")).code == 0
    before = listing(folder)
    done = run(words(folder, "--only-write-lora", "--checkpoint-in", "chk-4.gguf", "--lora-out",
                     "again-ITERATION.gguf", "--train-data", "nothing.txt"))  # fmt: skip
    assert done.code == 0, done
    after = listing(folder)
    assert after.keys() - before.keys() == {"again-4.gguf", "again-LATEST.gguf"}
    assert after["again-4.gguf"] == after["again-LATEST.gguf"] == before["lora-4.gguf"]
    assert {k: after[k] for k in before} == before


def test_only_write_lora_of_an_old_checkpoint(folder: Path, run: Run) -> None:
    path = old_checkpoint(folder)
    more = ["--only-write-lora", "--checkpoint-in", str(path)]
    assert run(words(folder, *more)).code == 0
    assert "lora-3.gguf" in listing(folder)
    got = file_bits(folder / "lora-3.gguf")
    pair = load_checkpoint(path).adapter.pairs["blk.1.ffn_up.weight"]
    assert got["blk.1.ffn_up.weight.lora_a"] == pair.a.tobytes()
    assert got["blk.1.ffn_up.weight.lora_b"] == pair.b.tobytes()


def test_nothing_to_write(folder: Path, run: Run) -> None:
    more = ["--only-write-lora", "--checkpoint-in"]
    refused(run(words(folder, *more, "none.gguf")), 2, "there is no checkpoint none.gguf")
    refused(run(words(folder, *more, "x", "--lora-out", "")), 2, "--lora-out is empty")
    path = old_checkpoint(folder)
    make_llama(folder / "toy.gguf", n_ff=128)
    before = listing(folder)
    refused(run(words(folder, *more, str(path))), 5, "feed_forward_length was 96, now 128")
    assert listing(folder) == before


# Names, overrides, kinds of data


def test_other_words_in_names(folder: Path, run: Run) -> None:
    more = ["--pattern-fn-it", "@", "--fn-latest", "new", "--lora-out", "l-@-ITERATION.gguf",
            "--checkpoint-out", "c-@.gguf", "--save-every", "2", "--keep-last", "1"]  # fmt: skip
    assert run(words(folder, *more)).code == 0
    made = {n for n in listing(folder) if n.startswith(("c-", "l-"))}
    assert made == {
        "c-4.gguf", "c-new.gguf", "l-4-ITERATION.gguf", "l-new-ITERATION.gguf",
        "l-new-ITERATION.config.yaml",
    }  # fmt: skip


def test_constants_of_the_model_can_be_given(folder: Path, run: Run) -> None:
    def first_loss(*more: str) -> float:
        (folder / "log").unlink(missing_ok=True)
        assert run(words(folder, "--adam-iter", "1", "--log", "log", *more)).code == 0
        return float(log_rows(folder / "log")[0]["loss"])

    plain = first_loss()
    same = ["--norm-rms-eps", "1e-5", "--rope-freq-base", "10000", "--rope-freq-scale", "1"]
    assert first_loss(*same) == plain
    for more in (["--norm-rms-eps", "1"], ["--rope-freq-base", "3"], ["--rope-freq-scale", "0.1"]):
        assert first_loss(*more) != plain
        done = run(words(folder, "--checkpoint-in", "chk-LATEST.gguf"))
        refused(done, 5, "was")


def test_chats_are_not_cut_like_text(folder: Path, run: Run) -> None:
    toy_chat(folder / "text.txt")
    for option in (["--sample-start", "<"], ["--fill-with-next-samples"], ["--separate-with-eos"]):
        chat = words(folder, *option, "--chat-template", "alpaca", "--ctx", "256")
        refused(run(chat), 2, option[0], "is for plain text")
    done = run(words(folder, "--compat", "--dry-run"))
    assert done.code == 0
    assert "plain text" in done.out  # the old tool has no other kind


def test_a_new_order_on_request(folder: Path, run: Run) -> None:
    for more in ([], ["--compat"]):
        assert run(words(folder, *more)).code == 0
        again = ["--checkpoint-in", "chk-4.gguf", "--force-reshuffle", "--adam-iter", "1", *more]
        assert run(words(folder, *again, "--seed", "99")).code == 0
        state = load_checkpoint(folder / "chk-5.gguf")
        assert state.seed == 99
        extra = 2 if more else 0  # the old tool's last evaluation
        assert state.next_sample == 2 + extra
        assert state.epoch == (0 if more else 1)
        if more:
            assert state.rng_state == MT19937.seeded(99).text()


def test_padding_counts_with_compat_only(folder: Path, run: Run) -> None:
    (folder / "text.txt").write_text("<the hen<her", encoding="utf-8")
    tokens = []
    for more in ([], ["--compat"]):
        (folder / "log").unlink(missing_ok=True)
        cut = ["--sample-start", "<", "--adam-iter", "1", "--log", "log", *more]
        assert run(words(folder, *cut)).code == 0
        tokens.append(log_rows(folder / "log")[0]["tokens"])
    assert tokens[0] < tokens[1] == 2 * 16


def test_the_schedule_is_one_behind_with_compat(folder: Path, run: Run) -> None:
    rates = []
    for more in ([], ["--compat"]):
        (folder / "log").unlink(missing_ok=True)
        assert run(words(folder, "--log", "log", "--warmup", "3", *more)).code == 0
        rates.append([row["lr"] for row in log_rows(folder / "log")])
    assert rates[1][0] == 0
    assert rates[1][1:] == rates[0][:-1]


# Old checkpoints that cannot be continued


def test_old_checkpoints_that_do_not_fit(folder: Path, run: Run) -> None:
    path = old_checkpoint(folder)
    whole = path.read_bytes()
    more = ["--checkpoint-in", "old.gguf"]

    def check(code: int, *parts: str, options: tuple[str, ...] = ()) -> None:
        before = listing(folder)
        refused(run(words(folder, *more, *options)), code, *parts)
        assert listing(folder) == before

    check(5, "rank of wq was 2, now 7", options=("--rank-wq", "7"))
    check(5, "rank of wq was 2, now 4", " more differences", options=("--lora-r", "4"))
    check(5, "samples", "--force-reshuffle", options=("--ctx", "8"))
    check(5, "--checkpoint-order left or right")  # its moments are random
    path.write_bytes(whole[: len(whole) // 2])
    check(5, "old.gguf")
    old_checkpoint(folder, **{"training.iteration_count": ("3", ValueType.STRING)})
    check(5, "training.iteration_count")
    old_checkpoint(folder, **{"llama.embedding_length": (32, ValueType.UINT32)})
    check(5, "embedding_length was 32, now 64")
    old_checkpoint(folder, **{"llama.rope.freq_base": (5e5, ValueType.FLOAT32)})
    check(5, "rope.freq_base was 500000.0, now 10000.0", "--force")
    toy_text(folder / "text.txt", 90)
    old_checkpoint(folder)
    check(5, "changed from 52 to 37 samples")


def test_old_checkpoints_that_go_on(folder: Path, run: Run) -> None:
    old_checkpoint(folder)
    more = ["--checkpoint-in", "old.gguf", "--checkpoint-order", "left", "--adam-iter", "1"]
    done = run(words(folder, *more))
    assert done.code == 0, done
    assert "moments of the old checkpoint: order left" in done.out
    state = load_checkpoint(folder / "chk-4.gguf")
    assert (state.iteration, state.next_sample, state.sample_count) == (4, 8, 8)
    assert state.rng_state == MT19937.seeded(11).text()
    assert not state.old
    again = words(folder, "--checkpoint-in", "chk-4.gguf", "--adam-iter", "1")
    assert run(again).code == 0
    assert load_checkpoint(folder / "chk-5.gguf").next_sample == 10
    # other data, by force or on request: the order starts again
    toy_text(folder / "text.txt", 90)
    for option in ("--force", "--force-reshuffle"):
        for path in (*folder.glob("chk-*"), *folder.glob("lora-*")):
            path.unlink()
        done = run(words(folder, *more, option))
        assert done.code == 0, done
        state = load_checkpoint(folder / "chk-4.gguf")
        assert (state.n_samples, state.next_sample) == (37, 2)


def test_what_has_no_effect_or_is_ignored_is_said(folder: Path, run: Run) -> None:
    done = run(words(folder, "--use-flash", "--compat", "--lora-alpha", "8", "--dry-run"))
    assert done.code == 0
    assert "--use-flash and --no-flash have no effect" in done.out
    assert "--lora-alpha 8 is treated as 4" in done.out
