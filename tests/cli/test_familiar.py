"""For options of other programs, the message names the option that was meant."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from nbllama.cli.convert_lora import Options as ConvertLoraOptions
from nbllama.errors import UsageError
from nbllama.options.chat import MainOptions, parse_main
from nbllama.options.familiar import answers, others
from nbllama.options.familiar.finetune import FINETUNE
from nbllama.options.finetune.table import OPTIONS, Options, parse
from nbllama.options.gradcheck import GradcheckOptions
from nbllama.options.inspect import InspectOptions
from nbllama.options.merge import ExportOptions, QuantizeOptions
from nbllama.options.parser import table
from nbllama.options.peek import PeekOptions
from nbllama.options.perplexity import PerplexityOptions
from nbllama.options.show_data import ShowOptions
from nbllama.options.unknown import unknown
from nbllama.options.verify import VerifyOptions

TABLES = {
    "finetune": (FINETUNE, Options),
    "chat": (others.CHAT, MainOptions),
    "export-lora": (others.EXPORT_LORA, ExportOptions),
    "quantize": (others.QUANTIZE, QuantizeOptions),
    "perplexity": (others.PERPLEXITY, PerplexityOptions),
    "verify": (others.VERIFY, VerifyOptions),
    "gradcheck": (others.GRADCHECK, GradcheckOptions),
    "inspect": (others.INSPECT, InspectOptions),
    "peek": (others.PEEK, PeekOptions),
    "show-data": (others.SHOW_DATA, ShowOptions),
    "convert-lora": (others.CONVERT_LORA, ConvertLoraOptions),
}

# Options that users of mlx-lm, PEFT, TRL, Unsloth, axolotl, LLaMA-Factory and llama.cpp type, and
# a part of the line that they must see.
MEANT = {
    "--lora-rank": "did you mean --lora-r?",
    "--lora_rank": "did you mean --lora-r?",
    "--rank": "did you mean --lora-r?",
    "-r": "did you mean --lora-r?",
    "--data": "did you mean --train-data?",
    "--dataset": "did you mean --train-data?",
    "--dataset_name": "did you mean --train-data?",
    "--output": "--lora-out FOLDER/lora-ITERATION.gguf",
    "--output-dir": "--checkpoint-out FOLDER/chk-ITERATION.gguf",
    "--iters": "did you mean --adam-iter?",
    "--max-steps": "did you mean --adam-iter?",
    "--num-layers": "--lora-layers last:N",
    "--max-seq-length": "did you mean --ctx?",
    "--cutoff_len": "did you mean --ctx?",
    "--sequence-len": "did you mean --ctx?",
    "--batch-size": "did you mean --batch?",
    "--per-device-train-batch-size": "did you mean --batch?",
    "--micro_batch_size": "did you mean --batch?",
    "--gradient-accumulation-steps": "did you mean --grad-acc?",
    "--lora-target-modules": "--rank-wq (q_proj)",
    "--lora_target": "--rank-w2 (down_proj)",
    "--num-train-epochs": "did you mean --epochs?",
    "--warmup-ratio": "--warmup N, in iterations",
    "--warmup-steps": "did you mean --warmup?",
    "--lr-scheduler-type": "did you mean --lr-schedule?",
    "--max-grad-norm": "did you mean --grad-clip?",
    "--optim": "did you mean --optimizer?",
    "--load-in-4bit": "leave it out: weights keep the types that they have in the GGUF file",
    "--bf16": "and sums are computed in float32",
    "--device": "leave it out: everything runs on the CPU",
    "--model": "did you mean --model-base?",
    "--model_name_or_path": "did you mean --model-base?",
    "-m": "did you mean --model-base?",
    "--adapter-path": "--lora-out FILE is the adapter to write, and --lora-in",
    "--save-steps": "did you mean --save-every?",
    "--logging-steps": "--log FILE writes one JSON line",
    "--eval-steps": "did you mean --eval-every?",
    "--resume-from-checkpoint": "did you mean --checkpoint-in?",
    "--resume-adapter-file": "did you mean --lora-in?",
    "--train-on-inputs": "did you mean --train-on-prompt?",
    "--mask-prompt": "only answers contribute to the loss",
    "--sample-packing": "did you mean --packing?",
    "--neftune-noise-alpha": "--lora-dropout",
    "--use-dora": "only plain LoRA",
    "--gradient-checkpointing": "--no-checkpointing",
    "--val-set-size": "--val-split takes a share",
    "--report-to": "--tensorboard FOLDER",
    "--early-stopping-patience": "did you mean --early-stop?",
    "--save-total-limit": "did you mean --keep-last?",
}


def line(*argv: str) -> str:
    with pytest.raises(UsageError) as e:
        parse(argv)
    return str(e.value)


def test_what_other_trainers_call_it() -> None:
    assert len(MEANT) > 40
    for typed, said in MEANT.items():
        for argv in ([typed, "1"], [f"{typed}=1"], ["--model-base", "m", typed]):
            got = line(*argv)
            assert got.startswith(f"unknown option '{typed.replace('_', '-')}'; ")
            assert said in got, typed
            assert "\n" not in got and len(got) < 300


def test_what_resembles_another_option_by_chance() -> None:
    """No hint is better than a wrong hint."""
    for typed in ("--outputs-to", "--device-x", "--zzz-steps", "--zzz"):
        assert line(typed) == f"unknown option '{typed}'; --help lists them all"
    names = [name for o in OPTIONS for name in (*o.names, *o.off)]
    for typed in ("--output", "--data", "--device"):
        assert str(unknown(typed, names, {})).endswith("--help lists them all")
    assert "did you mean --train-data?" in str(unknown("--train-dta", names, {}))


@pytest.mark.parametrize("verb", TABLES)
def test_answers_name_options_that_exist(verb: str) -> None:
    familiar, kind = TABLES[verb]
    names = {name for o in table(kind) for name in (*o.names, *o.off)}
    assert not names & set(familiar), "a name of our own needs no answer"
    for theirs, ours in familiar.items():
        assert theirs.startswith("-") and "_" not in theirs, theirs
        for name in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", ours):
            assert name in names, f"{theirs}: {ours}"
        if " " not in ours:
            assert ours in names, f"{theirs}: {ours}"


def test_a_name_with_two_answers_is_refused() -> None:
    with pytest.raises(AssertionError):
        answers((("--a", "--x --y"),), (("--b", "--y"),))


@pytest.mark.parametrize(
    ("verb", "typed", "said"),
    [
        ("chat", "--max-tokens", "did you mean --predict?"),
        ("chat", "--max_new_tokens", "did you mean --predict?"),
        ("chat", "--adapter", "did you mean --lora?"),
        ("chat", "--adapter-path", "did you mean --lora?"),
        ("chat", "--model-base", "did you mean --model?"),
        ("chat", "--system", "did you mean --system-prompt?"),
        ("chat", "--repetition-penalty", "did you mean --repeat-penalty?"),
        ("chat", "--ctx", "did you mean --ctx-size?"),
        ("generate", "--message", "did you mean --prompt?"),
        ("generate", "--num-beams", "--temp 0"),
        ("generate", "--device", "runs on the CPU"),
        ("export-lora", "--output-dir", "--model-out takes the name of a GGUF file"),
        ("export-lora", "--adapter", "did you mean --lora?"),
        ("quantize", "--type", "IN OUT TYPE"),
        ("quantize", "--output", "IN OUT TYPE"),
        ("convert-lora", "--outfile", "IN OUT"),
        ("verify", "--adapter-path", "did you mean --lora?"),
        ("perplexity", "--max-seq-length", "did you mean --ctx-size?"),
        ("gradcheck", "--lora-rank", "did you mean --rank?"),
        ("inspect", "--model", "did you mean --model-base?"),
        ("peek", "--tensor", "FILE [PATTERN ...]"),
        ("show-data", "--dataset", "did you mean --train-data?"),
        ("report", "--output", "LOG OUT.html"),
    ],
)
def test_what_other_programs_call_it(
    verb: str, typed: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = import_module("nbllama.cli.command").main
    assert command([verb, typed, "x"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"error: unknown option '{typed.replace('_', '-')}'; ") and said in err


def test_a_model_without_its_option() -> None:
    assert line("model.gguf") == ("'model.gguf' is not an option; pass a model with --model-base")
    with pytest.raises(UsageError, match=r"pass a model with --model$"):
        parse_main(["model.gguf"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora_r: 8\nlora_rank: 8", "line 2: unknown option '--lora-rank'; did you mean --lora-r?"),
        (
            "datasets:\n  - path: x",
            "line 1: unknown option '--datasets'; did you mean --train-data?",
        ),
        ("lora_target_modules: [q_proj, v_proj]", "rank 0 excludes the matrix: --rank-wq (q_proj)"),
        (
            "lora_parameters:\n  rank: 8",
            "line 1: unknown option '--lora-parameters'; pass --lora-r",
        ),
        ("base_model: m", "did you mean --model-base?"),
        ("load_in_4bit: true", "leave it out: weights keep"),
        ("gradient_checkpointing: true", "leave it out: gradient checkpointing is on"),
        ("output_dir:", "--lora-out FOLDER/"),
        ("val_set_size: 0.05", "--val-split takes a share"),
    ],
)
def test_keys_of_other_trainers_in_a_config_file(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text, encoding="utf-8")
    got = line("--config", str(config))
    assert got.startswith(f"--config {config}, line ") and said in got and "\n" not in got


def test_help_shows_the_usual_name_first() -> None:
    first = {o.dest: o.names[0] for o in OPTIONS}
    assert (first["adam_alpha"], first["adam_gclip"]) == ("--lr", "--grad-clip")
    assert (first["adam_decay"], first["cos_decay_min"]) == ("--weight-decay", "--lr-decay-min")
    for o in OPTIONS:
        assert "--" + o.dest.replace("_", "-") in o.names
    for name in ("--lr", "--learning-rate", "--adam-alpha", "--adam_alpha"):
        assert parse(["--model-base", "m", name, "0.5"]).adam_alpha == 0.5
