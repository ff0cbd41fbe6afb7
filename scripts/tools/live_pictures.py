"""Pictures of the live page of a real run, taken in Chromium while it trains."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples.look_inside import demo_model  # noqa: E402
from tests.browser import chromium, show  # noqa: E402

FIGURES = ROOT / "docs" / "walkthrough" / "figures"
CHATS = ROOT / "examples" / "demo" / "train.jsonl"
STOP_AT = 16  # iterations, of 20
OPTIONS = """--ctx 64 --batch 4 --lora-r 8 --seed 1 --no-checkpointing --checkpoint-in=
--checkpoint-out chk-ITERATION.gguf --lora-out lora-ITERATION.gguf --save-every 0 --adam-iter 20
--adam-alpha 2e-3 --eval-every 4 --sample-prompts prompts.txt --sample-tokens 32
--train-data few.jsonl --val-data held-out.jsonl --log run.jsonl --live""".split()


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the run of page 9 that memorises its data; return it and the address of its page."""
    chats = CHATS.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "few.jsonl").write_text("".join(chats[0:24:3]), encoding="utf-8")
    (folder / "held-out.jsonl").write_text("".join(chats[49:73:6]), encoding="utf-8")
    (folder / "prompts.txt").write_text(question(chats[0]) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "nbllama.finetune", "--model-base", str(demo_model())]
    # its output goes to a file: a pipe without a reader would block it
    with open(folder / "out.txt", "w", encoding="utf-8") as out:
        run = subprocess.Popen([*command, *OPTIONS], cwd=folder, stdout=out, text=True)
    while run.poll() is None:
        found = re.search(r"http://\S+/", (folder / "out.txt").read_text(encoding="utf-8"))
        if found:
            return run, found[0]
        time.sleep(0.2)
    sys.exit("the run ended before it had a page")


def question(line: str) -> str:
    """Return the user's message in a chat."""
    text = json.loads(line)["messages"][0]["content"]
    assert isinstance(text, str)
    return text


def wait_for(browser: Any, run: subprocess.Popen[str], code: str) -> None:
    """Wait until the code returns a true value on the page, or the run has ended."""
    while run.poll() is None and not browser.execute_script(f"return {code}"):
        time.sleep(0.3)


def picture(browser: Any, name: str, titles: str) -> None:
    """Save the cards whose headings match a pattern, one below the other, as one picture."""
    box = browser.execute_script(
        "scrollTo(0, 0); const shown = [...document.querySelectorAll('main > *')].filter(e =>"
        " e.offsetParent && new RegExp(arguments[0]).test("
        "e.querySelector('h1,h2,b')?.textContent || '')).map(e => e.getBoundingClientRect());"
        "const y = Math.max(0, Math.min(...shown.map(r => r.top)) - 8);"
        "const b = Math.max(...shown.map(r => r.bottom)) + 8;"
        "return {x: Math.max(0, shown[0].left - 8), y, width: shown[0].width + 16, height: b - y}",
        titles,
    )
    how = {"format": "png", "clip": box | {"scale": 1}}
    made = browser.execute_cdp_cmd("Page.captureScreenshot", how)["data"]
    (FIGURES / f"{name}.png").write_bytes(base64.b64decode(made))
    print(f"{name}.png: {box['width']:.0f} x {box['height']:.0f}")


def main() -> None:
    """Watch one run from start to stop."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, address = start(folder)
        try:
            with chromium(folder / "profile") as browser:
                watch(browser, run, address, folder)
        finally:
            run.kill()
            run.wait()


def watch(browser: Any, run: subprocess.Popen[str], address: str, folder: Path) -> None:
    """Ask questions on the page, take the pictures, and stop the run."""
    show(browser, address, 1280, 900)
    iteration = "Number(/iteration (\\d+)/.exec(document.querySelector('.about').textContent)[1])"
    wait_for(browser, run, f"{iteration} >= 2")
    asked = question((folder / "few.jsonl").read_text(encoding="utf-8").splitlines()[0])
    browser.find_element("css selector", ".ask textarea").send_keys(asked + "\n")
    wait_for(browser, run, f"{iteration} >= {STOP_AT - 2}")
    browser.find_element("css selector", ".ask textarea").send_keys(asked + "\n")
    wait_for(browser, run, f"{iteration} >= {STOP_AT}")
    # as high as the page, so that nothing has to scroll
    show(browser, address, 1280, 4200)
    time.sleep(2)
    picture(browser, "live-curves", r"\.gguf$|^[\d.]+$|^Loss")
    picture(browser, "live-norms", "^Where it learns")
    picture(browser, "live-questions", "^Questions|^Sample answers")
    browser.execute_script(
        "const select = document.querySelector('select[aria-label=text]');"
        "select.value = '1'; select.dispatchEvent(new Event('change'))"
    )
    for visit in (1, 3):
        browser.execute_script(
            "const slider = document.querySelector('input[type=range]');"
            "slider.value = arguments[0] - 1; slider.dispatchEvent(new Event('input'))",
            visit,
        )
        picture(browser, f"live-tokens-{visit}", "^What it reads")
    show(browser, address, 390, 6800, "dark")
    time.sleep(2)
    picture(browser, "live-phone", r"\.gguf$|^[\d.]+$|^Loss")
    press = "document.querySelector('button.stop').click()"
    browser.execute_script(press)
    browser.execute_script(press)
    print("stopped, exit code", run.wait(120))


if __name__ == "__main__":
    main()
