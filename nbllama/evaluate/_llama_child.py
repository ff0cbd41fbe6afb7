"""Run llama.cpp in a child process, for `nbllama.evaluate.llama_cpp`.

The process reads a JSON request from standard input and writes llama.cpp's results to standard
output. This module imports nothing from nbllama.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def _answer(request: dict[str, Any]) -> list[list[tuple[list[int], list[float]]]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = request["model"]
    params.n_gpu_layers, params.n_parallel, params.warmup = 0, 1, False
    params.n_ctx = max(256, 8 + max(map(len, request["rows"])))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request["threads"]
    params.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in request["adapters"]
    ]
    server = xllamacpp.Server(params)
    return [
        [
            _after(server, row[: i + 1], request["candidates"], request["draw"])
            for i in range(len(row))
        ]
        for row in request["rows"]
    ]


def _after(server: Any, prompt: list[int], k: int, draw: int) -> tuple[list[int], list[float]]:
    # llama.cpp returns no probabilities if the drawn token ends inside a character. A bias does not
    # change the returned probabilities, so it is used to force a token that ends with a whole
    # character.
    asked = {
        "prompt": prompt, "n_predict": 1, "n_probs": k, "temperature": 0.0, "cache_prompt": True,
        "stream": False, "logit_bias": [[draw, 1e6]],
    }  # fmt: skip
    answer = server.handle_completions(asked)
    try:
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    except (KeyError, IndexError, TypeError):
        raise RuntimeError(f"the answer contains no logprobs: {str(answer)[:400]}") from None
    return [item["id"] for item in top], [item["logprob"] for item in top]


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file, whose modules must not shadow others
    try:
        answer: Any = {"rows": _answer(json.loads(sys.stdin.buffer.read()))}
    except Exception as e:
        answer = {"error": f"{type(e).__name__}: {e}"}
    print("\n" + json.dumps(answer))
