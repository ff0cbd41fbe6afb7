"""Run the pages of docs/walkthrough, write the output of their blocks into them, and draw their
figures. The arguments are page numbers; without any, all pages run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.docs.pages import number, update, walkthrough

if __name__ == "__main__":
    for page in walkthrough():
        if len(sys.argv) == 1 or number(page) in sys.argv[1:]:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                update(page, Path(folder))
            print(f"{page.name}: {time.perf_counter() - start:.1f} s")
