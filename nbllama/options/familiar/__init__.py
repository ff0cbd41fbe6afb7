"""Option names from other programs, and the hint to print for each name.

Each table row contains a hint and the names that it applies to. A hint is the option to use
instead, or a sentence if the value has a different form or no option is needed. Names are spelled
with `-`; on the command line and in `--config` files, `_` is equivalent.
"""

from __future__ import annotations

Rows = tuple[tuple[str, str], ...]


def answers(*tables: Rows) -> dict[str, str]:
    """Return a mapping from names to hints, with one hint per name."""
    rows = [(name, answer) for rows in tables for answer, names in rows for name in names.split()]
    found = dict(rows)
    assert len(found) == len(rows), sorted(name for name, _ in rows)
    return found


# For every program: options that other tools require because of their hardware or model format.
_CPU = "leave it out: everything runs on the CPU; --threads sets the number of CPU threads"
_AS_IT_IS = "leave it out: weights keep the types that they have in the GGUF file"
_LOCAL = "leave it out: the model is a GGUF file on this machine, and nothing is downloaded"
_TEXT_IN_FILE = "leave it out: the tokenizer is in the GGUF file"

ANYWHERE: Rows = (
    (_CPU, "--device --device-map --no-cuda --use-cpu --gpu --gpus --gpu-layers --use-mps-device"
           " --cuda --main-gpu --tensor-split --split-mode -sm -mg --local-rank"),
    ("leave it out: attention is always computed in tiles", "--flash-attn -fa"
     " --flash-attention --use-flash-attn --use-flash-attention-2 --attn-implementation"
     " --xformers-attention --sdp-attention"),
    (_AS_IT_IS, "--load-in-4bit --load-in-8bit --quantization-bit --quantization"
                " --quantization-method --use-4bit --use-qlora --qlora"
                " --bnb-4bit-quant-type --bnb-4bit-compute-dtype"),
    ("leave it out: weights keep the types that they have in the GGUF file, and sums are computed "
     "in float32",
     "--bf16 --fp16 --tf32 --dtype --torch-dtype --pure-bf16 --fp32 --mixed-precision --precision"
     " --float16 --bfloat16"),
    (_LOCAL, "--trust-remote-code --cache-dir --hf-token --hf-repo -hf --hf-file --use-auth-token"
             " --revision --model-revision --push-to-hub --hub-model-id --upload-repo"),
    (_TEXT_IN_FILE, "--tokenizer --tokenizer-name --tokenizer-path --tokenizer-type"),
    ("leave it out: the model file is memory-mapped, and the operating system caches the parts in "
     "use",
     "--mlock --no-mmap --mmap --low-vram"),
    ("--threads", "--num-threads --n-threads --nthreads --num-workers --threads-batch -tb --cpus"),
)  # fmt: skip
