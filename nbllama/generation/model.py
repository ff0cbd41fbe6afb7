"""A model that generates text from prompts and chats."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from nbllama.arguments import described, file_name, instance, positive, whole
from nbllama.data.chat import prompt_ids
from nbllama.errors import UsageError, shown
from nbllama.generation.arguments import check_adapter, memory_for, number_of_tokens
from nbllama.generation.batch import AT_ONCE, generate_many
from nbllama.generation.messages import messages_of_prompt
from nbllama.generation.predictor import Predictor
from nbllama.generation.sampling.chain import Sampler
from nbllama.generation.settings import sampling_params
from nbllama.lora.pairs import Adapter
from nbllama.model import passes
from nbllama.text import ChatTemplate, StreamDecoder, chat_template_for, find_layout

Prompt = str | Sequence[Mapping[str, Any]]


class Model(passes.Model):
    """A GGUF model for computing activations and generating text, as returned by `load_model`."""

    def __repr__(self) -> str:
        return f"<Model: {self.hp.arch}, {self.hp.n_layer} layers, {shown(self.gguf.path, 400)}>"

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
            Name of a template ("chatml", "llama-3", ...) or path of a template file, to use
            instead of the model's own template. Not allowed if `prompt` is a string.
        exact : bool
            When processing tokens one at a time, keep activations in float32 instead of
            rounding them to 8 bits.
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
            The template rejects the messages, or training would refuse them.
        NotEnoughMemory
            The prompt and `max_tokens` tokens do not fit in memory.
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
        check_adapter(adapter)
        max_tokens = number_of_tokens("max_tokens", max_tokens)
        params = sampling_params(temperature, sampling)
        (ids,) = self._prompts([prompt], chat_template)
        n_ctx = self._context([ids], max_tokens)
        # the sampler can use n_ctx tokens; the predictor never uses the last position
        with memory_for(max_tokens):
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
            Number of prompts to process at a time; larger values are faster but need more memory.

        Returns
        -------
        list of str
            One answer per prompt, in the same order.
        """
        check_adapter(adapter)
        at_once = whole("at_once", at_once, 1)
        max_tokens = number_of_tokens("max_tokens", max_tokens)
        if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
            raise UsageError(
                f"prompts: {described(prompts)} is not allowed; pass a list of prompts, such as "
                "[prompt]"
            )
        prompts = list(prompts)
        if any(isinstance(prompt, Mapping) for prompt in prompts):
            raise UsageError("prompts: a single chat is not allowed; pass a list of chats: [chat]")
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
        chat_template = file_name("chat_template", chat_template or "")
        read = [p if isinstance(p, str) else messages_of_prompt(p) for p in prompts]
        if chat_template and read and all(isinstance(p, str) for p in read):
            raise UsageError(
                "chat_template: a prompt that is a string is completed without a template; pass "
                'messages, such as [{"role": "user", "content": "..."}]'
            )
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
    UsageError
        An argument is invalid.
    """
    for name, value in (
        ("rms_eps", rms_eps), ("rope_freq_base", rope_freq_base),
        ("rope_freq_scale", rope_freq_scale),
    ):  # fmt: skip
        if value is not None:
            positive(name, value)
    instance("pre", pre, (str, type(None)), "pass the name of a pre-tokenizer")
    return Model.load(
        file_name("path", path), rms_eps=rms_eps, rope_freq_base=rope_freq_base,
        rope_freq_scale=rope_freq_scale, pre=pre,
    )  # fmt: skip
