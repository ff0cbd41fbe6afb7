r"""The pre-tokenizers of BPE vocabularies, which split a text before BPE merges.

`tokenizer.ggml.pre` contains the name of a pre-tokenizer, which consists of regular expressions
that are applied one after the other. Each expression splits every remaining piece into its matches
and the gaps between them, and is matched only within that piece. BPE merges never cross the
boundary of a piece. Source: llama.cpp, src/llama-vocab.cpp (`llm_tokenizer_bpe`, `impl::load`) and
src/unicode.cpp. Because of unicode.cpp, some expressions differ from those in the original
tokenizers.

The expressions are written for Oniguruma, the regex engine in Hugging Face `tokenizers`: `\z` is
the end of the piece and `&&` intersects character classes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from nbllama.errors import GGUFError, shown


class PreTokenizer(NamedTuple):
    """The rules for splitting a text before BPE merges."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is itself a token needs no merges
    add_bos: bool = False  # if `tokenizer.ggml.add_bos_token` is missing
    has_bos: bool = True  # if `tokenizer.ggml.bos_token_id` is missing

    def expressions(self) -> list[str]:
        """Return `patterns`, with general categories as in Unicode 15.1, which llama.cpp uses."""
        return [_CATEGORY.sub(rf"[\g<0>&&[^{_UNICODE_16}]]", p) for p in self.patterns]


# Oniguruma in `tokenizers` 0.23 includes the new characters of Unicode 16.0.
_UNICODE_16 = (
    "\u0897\u1b4e\u1b4f\u1b7f\u1c89\u1c8a\u2427-\u2429\u31e4\u31e5\ua7cb-\ua7cd\ua7da-\ua7dc"
    "\U000105c0-\U000105f3\U00010d40-\U00010d65\U00010d69-\U00010d85\U00010d8e\U00010d8f"
    "\U00010ec2-\U00010ec4\U00010efc\U00011380-\U000113e2\U000116d0-\U000116e3"
    "\U00011bc0-\U00011be1\U00011bf0-\U00011bf9\U00011f5a\U00013460-\U000143fa\U00016100-\U00016139"
    "\U00016d40-\U00016d79\U00018cff\U0001cc00-\U0001ccf9\U0001cd00-\U0001ceb3"
    "\U0001e5d0-\U0001e5fa\U0001e5ff\U0001f8b2-\U0001f8bb\U0001f8c0\U0001f8c1\U0001fa89"
    "\U0001fa8f\U0001fabe\U0001fac6\U0001fadc\U0001fadf\U0001fae9\U0001fbcb-\U0001fbef"
)
_CATEGORY = re.compile(r"\\p\{[LMNPS]\}")


_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(numbers: str) -> str:
    """Return the expression for the cl100k family; `numbers` matches a group of digits."""
    return (
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
    )


def _cased_words(numbers: str, contraction: str) -> str:
    """Return the expression for the o200k family.

    llama.cpp treats every letter except a-z as "not small" and every letter except A-Z as "not
    capital", so letters outside ASCII are both.
    """
    lead, not_small, not_capital = r"[^\r\n\p{L}\p{N}]?", r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
    return (
        f"{lead}{not_small}*{not_capital}+{contraction}|{lead}{not_small}+{not_capital}*{contraction}"
        rf"|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


_DEEPSEEK3_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    rf"|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)

# Cased letters as DeepSeek lists them.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
# llama.cpp replaces every non-ASCII space before matching these classes, hence `&&[^\s]` and the
# missing U+3000.
_DEEPSEEK_MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001\u3002]+"
_DEEPSEEK_CJK = "[[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]&&[^\\s]]+"
_KANA_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_POINTS = "\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c"

_GPT2 = PreTokenizer((_GPT2_WORDS,))
_DIGITS_GPT2 = PreTokenizer((r"\p{N}", _GPT2_WORDS))
_CL100K = PreTokenizer((_words(r"\p{N}{1,3}"),))
_LLAMA3 = _CL100K._replace(ignore_merges=True, add_bos=True)
_QWEN2 = PreTokenizer((_words(r"\p{N}"),))
_QWEN35_WORDS = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_GLM4 = _CL100K._replace(has_bos=False)
_O200K = PreTokenizer((_cased_words(r"\p{N}{1,3}", f"{_CONTRACTION}?"),))
_DEEPSEEK3 = PreTokenizer((r"\p{N}{1,3}", _KANA_HAN, _DEEPSEEK3_WORDS))
_BLOOM = PreTokenizer((f" ?[^(\\s|.,!?{_POINTS})]+",))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer(
        (r"[\p{P}$+<=>^~|]+", _GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"),
    ),
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "gigachat": _GPT2,
    "mellum": _GPT2,
    "a.x-4.0": _GPT2,
    "exaone4": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "jais": _GPT2,
    "trillion": _GPT2,
    "granite-docling": _GPT2,
    "smollm": _DIGITS_GPT2,
    "starcoder": _DIGITS_GPT2,
    "refact": _DIGITS_GPT2,
    "command-r": _DIGITS_GPT2,
    "codeshell": _DIGITS_GPT2,
    "exaone": _DIGITS_GPT2,
    "minerva-7b": _DIGITS_GPT2,
    "mellum2": _DIGITS_GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "falcon-h1": _LLAMA3,
    "pixtral": _LLAMA3,
    "midm-2.0": _LLAMA3,
    "lfm2": _LLAMA3,
    "dbrx": _CL100K,
    "smaug-bpe": _CL100K,
    "chatglm-bpe": _GLM4,
    "glm4": _GLM4._replace(ignore_merges=True),
    "glm5": _GLM4._replace(ignore_merges=True),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "kormo": _QWEN2,
    "megrez": _QWEN2,
    "qwen35": PreTokenizer((_QWEN35_WORDS,)),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _words(r"\p{N}+")), ignore_merges=True),
    "stablelm2": _QWEN2,
    "hunyuan": _QWEN2,
    "grok-2": _QWEN2,
    "solar-open": _QWEN2,
    "tekken": PreTokenizer((_cased_words(r"\p{N}", ""),), ignore_merges=True, add_bos=True),
    "gpt-4o": _O200K,
    "llama4": _O200K,
    "talkie": _O200K,
    "kanana2": _O200K,
    "minimax-m2": _O200K,
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            _DEEPSEEK_MARKS,
            r"\s+\z",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        ),
    ),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}"),
    ),
    "deepseek-v3": _DEEPSEEK3,
    "hunyuan-dense": _DEEPSEEK3,
    "joyai-llm": _DEEPSEEK3,
    "hy_v4": _DEEPSEEK3,
    "falcon": PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2_WORDS, "[0-9][0-9][0-9]")),
    "bloom": _BLOOM,
    "poro-chat": _BLOOM,
    "gpt3-finnish": _BLOOM,
    "viking": PreTokenizer((*_BLOOM.patterns, r"\p{N}")),
    "bailingmoe": _QWEN2,
    "bailingmoe2": _QWEN2,
    "llada-moe": _QWEN2,
    "seed-coder": PreTokenizer(
        (_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES,),
    ),
}


def pre_tokenizer(name: str) -> PreTokenizer:
    """Return the pre-tokenizer called `name`.

    Raises GGUFError for an unknown name, because a guess would give wrong tokens.
    """
    row = PRE_TOKENIZERS.get(name)
    if row is None:
        raise GGUFError(
            f"tokenizer.ggml.pre: pre-tokenizer '{shown(name)}' is not supported; if one of "
            f"the following splits text in the same way, pass its name with --pre: "
            f"{', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return row
