"""Seeded test strings with all kinds of input for a tokenizer."""

from __future__ import annotations

import random
from collections.abc import Sequence

ENGLISH = """The quick brown fox jumps over the lazy dog, doesn't it? We're sure they'll say I'd've
known; JOHN'S and IT'LL and o'clock. In 1998 there were 12,345.67 of them (about 3.5%), e.g. at
https://example.org/a_b?c=d#e or mail@example.com. Naïve café, façade, Straße, ÆON, İstanbul.
"""
CHINESE = """天地玄黄,宇宙洪荒。日月盈昃,辰宿列张。我们在这里学习语言模型的训练方法!
今天是2024年5月17日,温度为23.5摄氏度。「繁體字」與ひらがなカタカナ한국어도 있습니다。
"""
CODE = """def f(x: int) -> dict[str, list[int]]:\n    # comment\n\tif x != 0 and not y[3:-1]:\r\n
        return {"a": [x ** 2, ~x, x | 1], 'b': `c`}  # 0x1F\n\n
for(;;){i++;}//end\n<div class="x">&nbsp;</div>
"""
OTHER = """Привет, мир! Ελληνικά γράμματα. עברית ١٢٣ عربى हिन्दी ตัวอย่าง Việt Nam ⅷ ½ ①② ǅ ʰ ﬁ
"""
EMOJI = ["😀", "👨‍👩‍👧‍👦", "🇩🇪", "❤️", "👍🏽", "🫠", "e\u0301", "\u200b", "\ufeff", "\u00ad"]
CONTROLS = [chr(c) for c in range(32)] + [
    "\x7f",
    "\x80",
    "\x85",
    "\xa0",
    "\u2028",
    "\u3000",
    "\u1680",
]
SPACES = [" ", "  ", "   ", "    ", "\n", "\n\n", "\t", " \n", "\r\n", "\n ", "\u3000"]
PUNCTUATION = [
    *"'\"!?.,;:-_~^|`$+<=>()[]{}@#%&*/\\",
    "'s",
    "'LL",
    "...",
    "。",
    "，",
    "‘",
    "’",
    "▁",
]


def random_character(rng: random.Random) -> str:
    """A character of any plane except the surrogates, mostly of the lower planes."""
    top = rng.choice([0x7F, 0xFF, 0x7FF, 0x33FF, 0xFFFF, 0xFFFF, 0x10FFFF])
    while True:
        c = rng.randint(0, top)
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def test_strings(n: int, specials: Sequence[str], seed: int = 0, size: int = 12) -> list[str]:
    """`n` strings of up to `size` parts each; `specials` are texts of special tokens."""
    rng = random.Random(seed)
    words = [ENGLISH.split(), CODE.split(), OTHER.split(), [*CHINESE]]
    texts = [ENGLISH, CHINESE, CODE, OTHER]

    def part() -> str:
        kind = rng.randrange(12)
        if kind < 4:
            return rng.choice(rng.choice(words)) + rng.choice(["", " ", " "])
        if kind == 4:
            text = rng.choice(texts)
            at = rng.randrange(len(text))
            return text[at : at + rng.randint(1, 30)]
        if kind == 5:
            return rng.choice(EMOJI)
        if kind == 6:
            return rng.choice(SPACES)
        if kind == 7:
            return rng.choice(CONTROLS)
        if kind == 8:
            return rng.choice(PUNCTUATION)
        if kind == 9:
            return str(rng.randint(0, 10 ** rng.randint(1, 9)))
        if kind == 10:
            return "".join(random_character(rng) for _ in range(rng.randint(1, 4)))
        return rng.choice(specials) if specials else ""

    strings = ["", " ", "  ", "\n", "a", " a", "a ", "  a  ", "\x00", "▁", "▁▁ a", "你", "😀"]
    strings += [a + b for a in (" ", "x", "") for b in specials]
    strings += [a + b for a in specials[:4] for b in (*specials[:4], " ", " x", "\n\n", "  y ")]
    while len(strings) < n:
        strings.append("".join(part() for _ in range(rng.randint(1, size))))
    return strings[: max(n, 13)]


test_strings.__test__ = False  # type: ignore[attr-defined]
