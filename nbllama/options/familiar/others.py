"""Option names from other programs for chat, merging, quantising, scoring and inspecting."""

from __future__ import annotations

from nbllama.options.familiar import ANYWHERE, Rows, answers

_MODEL = "--model-name --model-name-or-path --model-id --model-path --base-model-name-or-path"
_ADAPTER = (
    "--adapter --adapters --adapter-path --adapter-file --adapter-name-or-path --lora-path"
    " --lora-adapter --peft --peft-path --lora-model-dir --lora-file --lora-in"
)
_TEXT = "--text --text-file --input-file --input --dataset --train-data --data --eval-data"
_OUT = "--output-dir --output-path --out --outfile --save-path --save-dir --out-path"

_CHAT: Rows = (
    ("--model", f"{_MODEL} --model-base --base-model"),
    ("--lora", _ADAPTER),
    ("--predict", "--max-tokens --max-new-tokens --num-predict --n-tokens --num-tokens --tokens"
                  " --max-length --max-gen-len --max-output-tokens"),
    ("--ctx-size", "--ctx --n-ctx --max-seq-length --max-seq-len --context-length --max-kv-size"
                   " --context-size --num-ctx"),
    ("--prompt", "--message --text --query --input --instruction --question --user"),
    ("--file", "--prompt-file --input-file"),
    ("--system-prompt", "--system --system-message --default-system --sys"),
    ("--chat-template", "--template --conversation-template --prompt-template --chat-template-path"
                        " --prompt-style"),
    ("leave it out: a chat uses the model's own template", "--jinja --no-jinja"
     " --use-default-chat-template --apply-chat-template"),
    ("`nbllama generate` completes a prompt without a template", "--ignore-chat-template"
     " --no-chat-template --raw"),
    ("--repeat-penalty", "--repetition-penalty --rep-pen --repeat-pen"),
    ("--repeat-last-n", "--repetition-context-size --repeat-window"),
    ("--reverse-prompt", "--stop --stop-sequence --stop-words --eos-token --stop-token"),
    ("--seed", "--random-seed --rng-seed"),
    ("--temp 0 picks the most likely token, and higher values draw tokens at random",
     "--do-sample --no-sample"
     " --greedy"),
    ("beam search is not supported; --temp 0 picks the most likely token", "--num-beams --beams"),
    ("leave it out: text is shown as it is generated", "--stream --no-stream --streaming"),
    ("--single-turn", "--one-shot --no-interactive"),
    ("leave it out: there is no warm-up, and prompts are not cached in files",
     "--no-warmup --warmup --prompt-cache --prompt-cache-all --no-perf"),
    ("grammars are not supported", "--grammar --grammar-file --json-schema -j"),
    ("--batch-size", "--ubatch-size -ub --prefill-step-size --n-batch"),
    ("--debug shows the traceback of an error", "--verbose -v --verbose-prompt"),
)  # fmt: skip

_EXPORT: Rows = (
    ("--outtype", "--type --ftype --out-type --dequantize --quantize --save-method --merge-type"),
    ("--model-base", f"{_MODEL} --model-file --base --base-model --hf-path"),
    ("--lora", _ADAPTER),
    ("--model-out takes the name of a GGUF file", f"{_OUT} --export-dir --gguf-path"),
    ("pass the scale with the adapter: --lora-scaled FILE SCALE", "--scale --alpha --lora-scale "
                                                                  "--weight"),
    ("leave it out: the output is a GGUF file", "--export-gguf --safe-serialization"
     " --export-size --max-shard-size"),
)  # fmt: skip

_TYPE_IS_A_WORD = "pass the type as the third argument: IN OUT TYPE"
_QUANTIZE: Rows = (
    (_TYPE_IS_A_WORD, "--type --outtype --ftype --q-bits --bits --quant --quantize -q --qtype"
                      " --quant-type --to"),
    ("pass the files as arguments: IN OUT TYPE", f"{_MODEL} {_OUT} --model -m --model-base"
     " --output -o --in --input -i --source --model-out"),
    ("importance matrices are not supported", "--imatrix --include-weights --exclude-weights"),
    ("--pure uses one type for all matrices; types cannot be chosen for individual matrices",
     "--output-tensor-type --token-embedding-type --tensor-type --leave-output-tensor"),
    ("--allow-requantize", "--requantize --force"),
)  # fmt: skip

_SCORES: Rows = (
    ("--model", f"{_MODEL} --base"),
    ("--lora", _ADAPTER),
    ("--file", _TEXT),
)  # fmt: skip

_PERPLEXITY: Rows = (
    *_SCORES,
    ("--ctx-size", "--max-seq-length --max-seq-len --sequence-length --seq-len --max-length --n-ctx"
                   " --context-length"),
    ("--chunks", "--num-samples --n-chunks --limit --max-samples"),
    ("pass --kl-divergence and --base-model FILE to compare with a second model",
     "--kl-divergence-base --kl"),
    ("leave it out: each chunk is computed in one pass", "--batch-size -b --batch -ub"
     " --ubatch-size"),
)  # fmt: skip

_VERIFY: Rows = (
    *_SCORES,
    ("--no-llama", "--no-llama-cpp --skip-llama"),
    ("--outtype", "--type"),
    (
        "leave it out: the sample is the first 256 tokens of the text",
        "--ctx --ctx-size -c --max-tokens",
    ),
)

_INSPECT: Rows = (
    ("--model-base", f"{_MODEL} --model --base --base-model"),
    ("--all", "-v --verbose --full --tensors --list-tensors"),
    ("--lora-r", "-r --r --lora-rank"),
    ("--check", "--check-tensors --validate --verify"),
)

_PEEK: Rows = (
    ("pass the file as the first argument: FILE [PATTERN ...]", f"{_MODEL} --model -m --model-base"
     " --file -f --input --dump"),
    ("pass patterns as arguments: FILE [PATTERN ...]", "--name --names --pattern --tensor"
     " --tensors"),
    ("--picture", "--plot --image --output -o --out --save"),
    ("--values", "--head-values --first --numbers"),
)  # fmt: skip

_GRADCHECK: Rows = (
    ("--model-base", f"{_MODEL} --base --base-model"),
    ("--lora", _ADAPTER),
    ("--data", "--train-data --dataset --file -f --text"),
    ("--rank", "--lora-rank -r --r"),
    ("--layers", "--lora-layers --num-layers --blocks"),
    ("--tolerance", "--tol --atol --rtol --eps --epsilon"),
    ("--tokens", "--ctx --ctx-size -c --max-tokens --max-seq-length"),
)

_SHOW_DATA: Rows = (
    ("--model-base", f"{_MODEL} --model --base --base-model"),
    ("--train-data", "--data --dataset --file -f --data-path --dataset-path --train-file"),
    ("--samples", "--num-samples --limit --n-samples --num-examples --show"),
    ("--ctx", "--ctx-size --max-seq-length --max-seq-len --max-length --cutoff-len"
              " --sequence-len"),
    ("--batch", "--batch-size --per-device-train-batch-size --micro-batch-size"),
    ("--chat-template", "--template --conversation-template"),
    ("--train-on-prompt", "--train-on-inputs"),
)  # fmt: skip

_CONVERT_LORA: Rows = (
    (
        "pass the adapters as arguments: IN OUT",
        f"{_ADAPTER} {_OUT} --lora --output -o --in --input",
    ),
    ("--model-base", f"{_MODEL} --model --base --base-model"),
    ("leave it out: values are not rounded if OUT can store them", "--outtype --type"),
)

# Hints never mention --threads if the program has no such option.
_NO_THREADS: Rows = tuple((a, names) for a, names in ANYWHERE if "--threads" not in a)

CHAT = answers(ANYWHERE, _CHAT)
EXPORT_LORA = answers(ANYWHERE, _EXPORT)
QUANTIZE = answers(ANYWHERE[:1] + ANYWHERE[-1:], _QUANTIZE)
PERPLEXITY = answers(ANYWHERE, _PERPLEXITY)
VERIFY = answers(ANYWHERE, _VERIFY)
GRADCHECK = answers(ANYWHERE, _GRADCHECK)
INSPECT = answers(_NO_THREADS, _INSPECT)
PEEK = answers(_PEEK)
SHOW_DATA = answers(_NO_THREADS, _SHOW_DATA)
CONVERT_LORA = answers(_NO_THREADS, _CONVERT_LORA)
