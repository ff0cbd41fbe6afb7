"""llama.cpp's greedy continuations of prompts.

    echo '{"model": "m.gguf", "prompts": [[1, 2]], "n": 8, "threads": 2}' | python greedy.py

reads a request and prints `{"answers": [[...]]}`; a prompt and its answer are lists of token ids.
It is a separate program because llama.cpp ends the whole process on files that it cannot use.
"""

from __future__ import annotations

import json
import sys
from typing import Any

GGML_TYPE_F32 = 0


def answers(request: dict[str, Any]) -> list[list[int]]:
    """Return the greedy continuation of each prompt: `n` tokens, or fewer if the text ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = request["model"]
    params.n_gpu_layers, params.n_parallel, params.warmup = 0, 1, False
    params.n_ctx = max(256, request["n"] + max(map(len, request["prompts"])))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request["threads"]
    # llama.cpp's default is 16 bits for keys and values
    params.cache_type_k = params.cache_type_v = GGML_TYPE_F32
    server = xllamacpp.Server(params)
    wanted = {"n_predict": request["n"], "temperature": 0.0, "stream": False}
    wanted |= {"return_tokens": True, "verbose": True}  # ids, not only the text
    found = [server.handle_completions(wanted | {"prompt": p}) for p in request["prompts"]]
    return [answer["__verbose"]["tokens"] for answer in found]


if __name__ == "__main__":
    print("\n" + json.dumps({"answers": answers(json.load(sys.stdin))}))
