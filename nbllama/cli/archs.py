"""The `--list-archs` table: the supported architectures, and what has been tested for each."""

from __future__ import annotations

CHECKS = """\
Each kind of model is tested with narrow random models. The logits are compared with llama.cpp (F32,
F16, Q8_0, Q4_K, Q2_K), and every gradient with finite differences. An adapter for every matrix is
also compared with llama.cpp, before and after merging. The PEFT column says whether adapters can be
written to and read from Hugging Face PEFT folders."""


def rows() -> list[tuple[str, str, str]]:
    """Return (architecture, kinds, PEFT) for every row of the table."""
    from nbllama.arch import ARCHS

    return [
        (row.name, "; ".join(row.checked), "yes" if row.hf_modules else "no")
        for row in ARCHS.values()
    ]


def table() -> str:
    """Return the table as text for the terminal."""
    found = [("architecture", "kinds", "PEFT"), *rows()]
    name = max(len(row[0]) for row in found)
    lines = [f"{row[0]:{name}}  {row[2]:4}  {row[1]}" for row in found]
    return "\n".join([*lines, "", CHECKS])


def markdown() -> str:
    """Return the table for docs/architectures.md."""
    lines = ["| architecture | kinds of models checked | PEFT folders |", "|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| `{name}` | {kinds} | {peft} |" for name, kinds, peft in rows())]
    )
