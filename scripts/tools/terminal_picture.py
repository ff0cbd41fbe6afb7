"""Draw the output of a program as a picture of a terminal, in SVG, with `rich`.

    nbllama finetune ... >run.txt 2>&1
    python scripts/tools/terminal_picture.py run.txt run.svg --command "nbllama finetune ..." \\
        --keep model --keep "iter= +[123] "

It draws the lines of run.txt that begin with one of the `--keep` patterns, unchanged except that
they are truncated at 80 columns; "..." replaces longer gaps between them.
scripts/tools/front_picture makes docs/run.svg.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 80
MANY = 5  # omitted lines that are shown as "..."
# rich's frame without its web fonts, so that a page loads nothing from other servers.
FRAME = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace;
font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def chosen(lines: list[str], patterns: list[str]) -> list[str]:
    """Return the lines that begin with one of the patterns, with "..." for longer gaps."""
    picked: list[str] = []
    left_out = 0
    for line in lines:
        if not any(re.match(pattern, line) for pattern in patterns):
            left_out += 1
            continue
        if picked and left_out >= MANY:
            picked.append("...")
        picked.append(line)
        left_out = 0
    return picked


def picture(lines: list[str], command: str, title: str) -> str:
    """Return the SVG text; every line is truncated to the width of the terminal."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for number, line in enumerate(command.splitlines()):
        prompt = Text("$ " if number == 0 else "    ", style="bold green")
        console.print(prompt + Text(line.strip(), style="bold"), overflow="crop", no_wrap=True)
    for line in lines:
        console.print(line, overflow="ellipsis", no_wrap=True, markup=False)
    return console.export_svg(title=title, code_format=FRAME, unique_id="terminal")


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("output", type=Path, help="the program's output")
    p.add_argument("svg", type=Path, help="the picture to write")
    p.add_argument("--keep", action="append", required=True, help="draw lines that begin with this")
    p.add_argument("--command", required=True, help="the command to show above them")
    p.add_argument("--title", default="nbllama", help="the window's title")
    given = p.parse_args()
    lines = given.output.read_text(encoding="utf-8").splitlines()
    svg = picture(chosen(lines, given.keep), given.command, given.title)
    given.svg.write_text(svg, encoding="utf-8")
    print(f"{given.svg}: {len(svg)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
