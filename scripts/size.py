"""Count the lines of the package, and check that its core can be read in an hour.

CORE lists the files, in any folder, that one must read to follow a training run from the adapter's
first values to the saved checkpoint. They call the operations (`ops/`, one page each), and the
options and the screen output call them.

Exits with 1 if the core is longer than its limit, if a listed file is missing, or if any other file
is longer than 300 lines and not in LONG.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE_LIMIT, FILE_LIMIT = 3920, 300

CORE = {
    "which tensors are trained, and how a pair starts": ("lora/slots.py", "lora/pairs.py"),
    "the forward and the backward pass": (
        "model/weights.py",
        "model/bound.py",
        "model/activations.py",
        "model/parts.py",
        "model/block.py",
        "model/passes.py",
        "model/gradients.py",
    ),
    "from a gradient to a step": (
        "opt/__init__.py",
        "opt/names.py",
        "opt/optimiser.py",
        "opt/adamw.py",
        "opt/sgd.py",
        "opt/lion.py",
        "opt/schedule.py",
        "opt/arrays.py",
    ),
    "a run, step by step": (
        "train/trainer.py",
        "train/validation.py",
        "train/run/run.py",
        "train/run/session.py",
        "train/run/loop.py",
    ),
    "saved and continued": (
        "checkpoint/stored.py",
        "checkpoint/state.py",
        "checkpoint/identity.py",
        "checkpoint/file.py",
    ),
}

# Files longer than FILE_LIMIT, with the reason.
LONG = {
    "api.py": "one page: the public functions, most of it their tables of parameters",
    "ops/attention/grad.py": "one page: three kernels of the gradient, which share their tiles",
    "ops/linear/linear.py": "one page: a layer with its pair, with and without dropout",
    "ops/experts/router.py": "one page: scores, choice and weights, and their gradient",
    "text/tokenizer.py": "one class: text to ids and back, and what is kept of the last texts",
    "quants/dot/_lanes.py": "one body for each width of vectors, side by side to be compared",
}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def main() -> int:
    package = ROOT / "nbllama"
    sizes = {p.relative_to(package).as_posix(): lines(p) for p in sorted(package.rglob("*.py"))}
    problems, core = [], 0
    for what, files in CORE.items():
        print(what)
        for name in files:
            if name not in sizes:
                problems.append(f"{name} is a part of the core, but there is no such file")
                continue
            print(f"{sizes[name]:6}  {name}")
            core += sizes[name]
    tests = sum(lines(p) for p in (ROOT / "tests").rglob("*.py"))
    print(f"{core:6}  the core (limit {CORE_LIMIT})")
    print(f"{sum(sizes.values()):6}  nbllama, {len(sizes)} files")
    print(f"{tests:6}  tests")
    if core > CORE_LIMIT:
        problems.append(f"the core has {core} lines; the limit is {CORE_LIMIT}")
    counted = {name for files in CORE.values() for name in files}
    problems += [
        f"{name} has {size} lines; the limit is {FILE_LIMIT}"
        for name, size in sizes.items()
        if size > FILE_LIMIT and name not in counted and name not in LONG
    ]
    for name in LONG:
        if sizes.get(name, 0) <= FILE_LIMIT:
            problems.append(f"{name} is listed as long, but has {sizes.get(name, 0)} lines")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
