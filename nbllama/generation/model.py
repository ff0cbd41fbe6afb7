"""A model that generates text from prompts and chats."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from nbllama.data.chat import prompt_ids
from nbllama.data.counts import Counts
from nbllama.data.turns import with_roles
from nbllama.errors import UsageError, shown
from nbllama.generation.batch import AT_ONCE, generate_many
from nbllama.generation.predictor import Predictor
from nbllama.generation.sampling.chain import Sampler
from nbllama.generation.settings import sampling_params
from nbllama.lora.pairs import Adapter
from nbllama.model import passes
from nbllama.text import ChatTemplate, StreamDecoder, chat_template_for, find_layout

Prompt = str | Sequence[Mapping[str, Any]]


class Model(passes.Model):
    """A GGUF model for computing activations and generating text, as returned by `load_model`."""

    def generate(
        self,
        prompt: Prompt,
        adapter: Adapter | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        *,
        chat_template: str = "",
        exact: bool = False,
        **sampling: Any,
    ) -> str:
        """Complete a text, or answer in a chat.

        Parameters
        ----------
        prompt : str or list of dict
            A string is completed without a template. Messages
            (`{"role": "user", "content": "..."}`) are formatted with the chat template, and the
            assistant's answer is returned.
        adapter : Adapter, optional
            LoRA adapter to apply to the model.
        max_tokens : int
            Maximum length of the answer, in tokens.
        temperature : float
            With 0, always choose the most likely token (greedy); above 0, sample tokens.
        chat_template : str
            Name of a template ("chatml", "llama-3", ...) or a file that contains one, to use
            instead of the model's own.
        exact : bool
            For single tokens, keep activations in float32 instead of rounding them to 8 bits.
        **sampling
            Settings of llama.cpp's samplers, with the same names and defaults: `top_k` (40),
            `top_p` (0.95), `min_p` (0.05), `typical`, `repeat_penalty`, `repeat_last_n`,
            `frequency_penalty`, `presence_penalty`, `mirostat`, `mirostat_lr`, `mirostat_ent`, and
            `seed` (the same seed produces the same tokens; by default, the seed is random).

        Returns
        -------
        str
            Only the new text, up to but excluding the token that ends a turn.

        Raises
        ------
        UsageError
            A setting is unknown or invalid, the prompt is empty, or there is no chat template.
        DataError
            The template rejects the messages.
        """
        stream = self.generate_stream(
            prompt, adapter, max_tokens, temperature,
            chat_template=chat_template, exact=exact, **sampling,
        )  # fmt: skip
        return "".join(stream)

    def generate_stream(
        self,
        prompt: Prompt,
        adapter: Adapter | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        *,
        chat_template: str = "",
        exact: bool = False,
        **sampling: Any,
    ) -> Iterator[str]:
        """Yield the text that `generate` returns, in pieces, while it is generated.

        The parameters are the same as for `generate`, and are checked immediately. Each piece
        consists of one or more whole characters.
        """
        _check_adapter(adapter)
        params = sampling_params(temperature, sampling)
        (ids,) = self._prompts([prompt], chat_template)
        n_ctx = self._context([ids], max_tokens)
        # the sampler can use n_ctx tokens; the predictor never uses the last position
        sampler = Sampler(params, self.hp.n_vocab, n_ctx)
        predictor = Predictor(self, adapter, sampler, n_ctx + 1, exact=exact)
        predictor.append(ids)
        return self._pieces(predictor, max_tokens, not isinstance(prompt, str))

    def generate_many(
        self,
        prompts: Sequence[Prompt],
        adapter: Adapter | None = None,
        max_tokens: int = 256,
        *,
        chat_template: str = "",
        at_once: int = AT_ONCE,
    ) -> list[str]:
        """Answer many prompts greedily, several at a time.

        All computation uses float32, so the result can differ from that of `generate` without
        `exact=True` when two tokens are nearly equally likely. Parameters that are not listed are
        the same as for `generate`.

        Parameters
        ----------
        prompts : list of str or list of messages
            Each prompt is in the same form as for `generate`.
        at_once : int
            Number of prompts to process at a time; more is faster but requires more memory.

        Returns
        -------
        list of str
            One answer per prompt, in the same order.
        """
        _check_adapter(adapter)
        if at_once < 1:
            raise UsageError(f"at_once: '{shown(at_once)}' is not allowed; use 1 or more")
        ids = self._prompts(prompts, chat_template)
        self._context(ids, max_tokens)
        found = generate_many(self, ids, max_tokens, adapter, at_once=at_once)
        texts = []
        for prompt, tokens in zip(prompts, found, strict=True):
            decoder = StreamDecoder(self.tokenizer, at_start=not isinstance(prompt, str))
            texts.append("".join(map(decoder.push, tokens)) + decoder.flush())
        return texts

    def _prompts(self, prompts: Sequence[Prompt], chat_template: str) -> list[list[int]]:
        """Return the token ids of each prompt."""
        found: list[list[int]] = []
        template: ChatTemplate | None = None
        read = [p if isinstance(p, str) else _messages(p) for p in prompts]
        with ExitStack() as stack:
            for prompt in read:
                if isinstance(prompt, str):
                    ids = self.tokenizer.encode(prompt, add_special=True, parse_special=True)
                else:
                    if template is None:
                        source = find_layout(chat_template).source if chat_template else None
                        template = chat_template_for(self.tokenizer, source)
                        stack.callback(template.close)  # ends the template's process
                    ids = prompt_ids(self.tokenizer, template, prompt)
                if not ids:
                    raise UsageError("nothing to complete: the prompt is empty")
                found.append(ids)
        return found

    def _context(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> int:
        """Return the maximum length of a text; warn if a prompt exceeds the trained context."""
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 0:
            raise UsageError(
                f"max_tokens: '{shown(max_tokens)}' is not allowed; use a whole number, 0 or more"
            )
        longest, trained = max(map(len, prompts), default=0), self.hp.n_ctx_train
        if 0 < trained < longest:
            warnings.warn(
                f"a prompt has {longest} tokens, but the model was trained with a context of "
                f"{trained}",
                stacklevel=4,
            )
        return longest + max_tokens

    def _pieces(self, predictor: Predictor, max_tokens: int, chat: bool) -> Iterator[str]:
        decoder = StreamDecoder(self.tokenizer, at_start=chat)
        for token in predictor.draw(max_tokens, self.tokenizer.eog_ids):
            if token in self.tokenizer.eog_ids:
                break
            if piece := decoder.push(token):
                yield piece
        if rest := decoder.flush():
            yield rest


def _messages(prompt: object) -> list[dict[str, Any]]:
    """Return the messages of a chat, with their roles renamed as in training data.

    Warns about unknown roles. Raises `UsageError` for anything but a list of messages.
    """
    if (
        not isinstance(prompt, Sequence)
        or isinstance(prompt, bytes)
        or not all(isinstance(m, Mapping) for m in prompt)
    ):
        raise UsageError("a prompt must be a string, or a list of messages with role and content")
    counts = Counts.empty()
    record = with_roles({"messages": [dict(m) for m in prompt]}, counts)
    messages: list[dict[str, Any]] = record["messages"]
    for i, message in enumerate(messages, 1):
        says = "content" in message or bool(message.get("tool_calls"))
        if not isinstance(message.get("role"), str) or not says:
            keys = shown(", ".join(map(str, message)), 80)
            raise UsageError(f"message {i} of the prompt has no role or no content (keys: {keys})")
    if counts.other_roles:
        listed = ", ".join(counts.other_roles)
        warnings.warn(f"the chat template receives unknown roles: {listed}", stacklevel=5)
    return messages


def _check_adapter(adapter: object) -> None:
    """Raise `UsageError` unless `adapter` is an `Adapter` or None."""
    if adapter is not None and not isinstance(adapter, Adapter):
        raise UsageError(
            f"adapter: {shown(adapter)!r} is not an adapter; pass nbllama.load_adapter(path, model)"
        )


def load_model(
    path: str | os.PathLike[str],
    *,
    rms_eps: float | None = None,
    rope_freq_base: float | None = None,
    rope_freq_scale: float | None = None,
    pre: str | None = None,
) -> Model:
    """Open a GGUF model. Weights stay memory-mapped and keep the types that they have in the file.

    Parameters
    ----------
    path : str or path
        A GGUF file.
    rms_eps, rope_freq_base, rope_freq_scale : float, optional
        Constants that override those in the file.
    pre : str, optional
        Name of the pre-tokenizer to use, if the file names an unknown one.

    Raises
    ------
    GGUFError
        The file is damaged or not supported.
    """
    return Model.load(
        path, rms_eps=rms_eps, rope_freq_base=rope_freq_base, rope_freq_scale=rope_freq_scale,
        pre=pre,
    )  # fmt: skip
