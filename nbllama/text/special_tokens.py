"""Tokens that llama.cpp identifies by their text, and the roles that it assigns to them.

Source: llama.cpp, src/llama-vocab.cpp, `llama_vocab::impl::load`. If several tokens in a
vocabulary match a role, and no key specifies the id, llama.cpp uses the first match in its hash
table, whereas this module uses the first match in `ROLES`. For the end of a turn, this affects only
`eot_id`, because all of these tokens end generation anyway.
"""

from __future__ import annotations

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE, RSTRIP = (1 << i for i in range(7))

# The attribute for each value of `tokenizer.ggml.token_type`.
ATTR_OF_TYPE = (0, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)

_END = "<\uff5cend\u2581of\u2581sentence\uff5c>"

# For each role, the keys that can contain its id, and the texts of its token if there is no key.
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "eot": (
        ("eot_token_id",),
        (
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            _END,
            "<end_of_utterance>",
        ),
    ),
    "eom": (("eom_token_id",), ("<|eom_id|>",)),
    "fim_pre": (
        ("fim_pre_token_id", "prefix_token_id"),
        (
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<\uff5cfim\u2581begin\uff5c>",
            "<PRE>",
            "\u2581<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ),
    ),
    "fim_suf": (
        ("fim_suf_token_id", "suffix_token_id"),
        (
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<\uff5cfim\u2581hole\uff5c>",
            "<SUF>",
            "\u2581<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ),
    ),
    "fim_mid": (
        ("fim_mid_token_id", "middle_token_id"),
        (
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<\uff5cfim\u2581end\uff5c>",
            "<MID>",
            "\u2581<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ),
    ),
    "fim_pad": (
        ("fim_pad_token_id",),
        ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    ),
    "fim_rep": (
        ("fim_rep_token_id",),
        ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    ),
    "fim_sep": (("fim_sep_token_id",), ("<|file_sep|>",)),
}

EOG_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    _END,
    "[e~[",
)

# Harmony's channel marks are always rendered.
RENDERED = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


def find_roles(given: dict[str, int], ids: dict[str, int], attrs: list[int]) -> dict[str, int]:
    """Return the id for each role, either from a key (`given`) or found by the token's text.

    Tokens that are found by their text are marked as control tokens in `attrs`.
    """
    roles = dict(given)
    for role, (_, texts) in ROLES.items():
        if role in roles:
            continue
        for text in texts:
            if text in ids:
                roles[role] = ids[text]
                attrs[ids[text]] |= CONTROL
                break
    return roles


def end_of_generation(
    roles: dict[str, int], eos_id: int | None, ids: dict[str, int], attrs: list[int]
) -> frozenset[int]:
    """Return the ids that end generation, as in llama.cpp, and correct `attrs` in place."""
    eog = {roles[r] for r in ("fim_pad", "fim_rep", "fim_sep") if r in roles}
    for text in EOG_TEXTS:
        if text in ids:
            eog.add(ids[text])
            attrs[ids[text]] |= CONTROL
    for text in RENDERED:
        if text in ids:
            attrs[ids[text]] = USER_DEFINED
    eog |= {i for i in (eos_id, roles.get("eot"), roles.get("eom")) if i is not None}

    def has(text: str) -> bool:
        return ids.get(text, -1) in eog

    called = has("<|call|>") or has("<|calls|>")
    if has("<|end|>") and called and (has("<|return|>") or has("<|flush|>")):
        eog.discard(ids["<|end|>"])
        attrs[ids["<|end|>"]] = USER_DEFINED
    if has("<|tool_response>") and has("</s>"):
        eog.discard(ids["</s>"])
        attrs[ids["</s>"]] = NORMAL
    return frozenset(eog)
