"""Small tokenizers that carry the chat formats of the well-known model families, in templates of our own writing.

`FAMILIES` is the table: each builds its tokenizer, and says by hand how one conversation must look. Byte-level BPE stands for
Llama 3, Qwen, Phi 4 and DeepSeek; `sentencepiece` for Llama 2, the first Mistrals, Phi 3 (a space put before every text,
spaces as U+2581, bytes for what is unknown) and, without that first space, Gemma.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "Name three rivers in Europe. The Rhine, the Danube and the Elbe.",
    "You are a helpful assistant. user assistant system model Be brief.",
    "The answer is 4.\n\nScore: 4\n\n",
    "[INST] hello world [/INST] hello",
    "User: One?\n\nAssistant: Two.",
) * 4
BARE_SPACE = "\u2581"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3, Qwen and DeepSeek cut texts into words: line ends stay together whatever follows (GPT-2's rule parts them)."""


def byte_level(names: tuple[str, ...], template: str | None, *, special: bool = True, **tokens: Any) -> Any:
    """A byte-level BPE tokenizer; `tokens`: bos, eos, pad (texts), adds_bos, and gpt2 for GPT-2's way to cut words."""
    inner = Tokenizer(models.BPE())
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut = pre_tokenizers.Split(Regex(WORDS), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = gpt2 if tokens.pop("gpt2", False) else pre_tokenizers.Sequence([cut, bytes_only])
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    return _finish(inner, names, template, special, tokens)


def sentencepiece(names: tuple[str, ...], template: str | None, *, prefix: bool = True, **tokens: Any) -> Any:
    """A BPE tokenizer as converted from SentencePiece; `prefix`: whether every text begins with a space of its own."""
    marked = [text.replace(" ", BARE_SPACE) for text in CORPUS]
    model = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=260, special_tokens=[], show_progress=False, max_token_length=6)
    model.pre_tokenizer = pre_tokenizers.Split(BARE_SPACE, "merged_with_next")
    model.train_from_iterator(marked, trainer)
    learned = _learned(model)
    basics = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: index for index, token in enumerate([*basics, *(t for t in learned[0] if t not in basics)])}
    inner = Tokenizer(models.BPE(vocabulary, learned[1], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", BARE_SPACE)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(BARE_SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(BARE_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return _finish(inner, names, template, True, {"unk": "<unk>", **tokens})


def _learned(tokenizer: Tokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    import json

    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


def _finish(inner: Tokenizer, names: tuple[str, ...], template: str | None, special: bool, tokens: dict[str, Any]) -> Any:
    adds_bos, bos = tokens.pop("adds_bos", False), tokens.get("bos")
    inner.add_special_tokens([AddedToken(text, normalized=False) for text in tokens.values() if text])
    inner.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))])
    named = {f"{name}_token": text for name, text in tokens.items() if text}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, chat_template=template, model_max_length=512, clean_up_tokenization_spaces=False, **named
    )


# --- templates ----------------------------------------------------------------------------------------------------

ALTERNATE = (
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 is even) %}"
    "{{ raise_exception('roles must take turns, the user first') }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GENERATION_MARKS = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content ~ '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content ~ '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{{ bos_token ~ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' ~ date_string ~ '\n\n' ~ system }}"
    "{{ '<|eot_id|>' }}"
    "{% for m in turns %}{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ (m.content | trim) ~ '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% set head = '<<SYS>>\n' ~ messages[0].content ~ "
    "'\n<</SYS>>\n\n' %}{% else %}{% set turns = messages %}{% set head = '' %}{% endif %}" + ALTERNATE + "{% for m in turns %}"
    "{% if m.role == 'user' %}{{ bos_token ~ '[INST] ' ~ (head if loop.first else '') ~ (m.content | trim) ~ ' [/INST]' }}"
    "{% else %}{{ ' ' ~ (m.content | trim) ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_OLD = (
    "{% set turns = messages %}{{ bos_token }}" + ALTERNATE + "{% for m in turns %}{% if m.role == 'user' %}"
    "{{ '[INST] ' ~ m.content ~ ' [/INST]' }}{% elif m.role == 'assistant' %}{{ m.content ~ eos_token }}{% else %}"
    "{{ raise_exception('only users and assistants') }}{% endif %}{% endfor %}"
)
MISTRAL_NEW = (  # shows the system text in the last turn of all if that is the user's, and nowhere else
    "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0].content %}"
    "{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}" + ALTERNATE + "{% for m in turns %}"
    "{% if m.role == 'user' %}{{ '[INST] ' ~ (system ~ '\n\n' if loop.last and system is defined else '') ~ m.content }}"
    "{{ '[/INST]' }}"
    "{% else %}{{ ' ' ~ (m.content | trim) ~ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_KEEPS = MISTRAL_NEW.replace("(m.content | trim)", "m.content")
QWEN25 = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
QWEN3 = (  # the last answer is shown behind an empty thinking block, earlier ones without
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{{ '<|im_start|>assistant\n' ~ ('<think>\n\n</think>\n\n' if loop.index0 > ns.last else '') ~ parts[-1].lstrip('\n') }}"
    "{% else %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
GEMMA = (
    "{% set turns = messages %}{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + ALTERNATE + "{% for m in turns %}"
    "{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' ~ (m.content | trim) ~ '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '<|im_sep|>' ~ m.content ~ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
DEEPSEEK2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' ~ m.content ~ '\n\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'Assistant: ' ~ m.content ~ eos_token }}{% else %}{{ m.content ~ '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
DEEPSEEK3 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<\uff5cUser\uff5c>' ~ m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<\uff5cAssistant\uff5c>' ~ m.content ~ eos_token }}{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c>' }}{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{{ '### ' ~ m.role ~ ':\n' ~ m.content ~ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)
REASONER = DEEPSEEK3.replace("{{ '<\uff5cAssistant\uff5c>' }}", "{{ '<\uff5cAssistant\uff5c><think>\n' }}")

# --- the table ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """One format. `example`: a user's 'Name a river.' answered by 'The Rhine.', as text up to the end token. `lead`, `tail`:
    the white space around the answer. `system`: 'Be brief.' and 'Hello', up to where the answer begins. `bos`: BOS written."""

    build: Callable[[], Any]
    example: str
    end: str
    system: str
    lead: str = ""
    tail: str = ""
    bos: int = 0
    strips: bool = False


def _chatml_example(head: str = "", think: str = "") -> str:
    return f"{head}<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n{think}The Rhine.<|im_end|>"


def _chatml_system(think: str = "") -> str:
    return f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n{think}"


IM = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
THINK = "<think>\n\n</think>\n\n"
DATED = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
USER3 = "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
ANSWER3 = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
LLAMA_TOKENS: dict[str, Any] = {"bos": "<s>", "eos": "</s>", "adds_bos": True}
DEEPSEEK_TOKENS: dict[str, Any] = {"bos": "<\uff5cbegin\uff5c>", "eos": "<\uff5cend\uff5c>", "adds_bos": True}
QWEN_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def _qwen3() -> Any:
    tokenizer = byte_level(IM, QWEN3, eos="<|endoftext|>", pad="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>")])
    return tokenizer


FAMILIES: dict[str, Family] = {
    "llama3": Family(
        lambda: byte_level(HEADERS, LLAMA3, bos="<|begin_of_text|>", eos="<|end_of_text|>", adds_bos=True),
        f"{DATED}{USER3}Name a river.{ANSWER3}The Rhine.<|eot_id|>",
        "<|eot_id|>", f"{DATED}Be brief.{USER3}Hello{ANSWER3}", bos=1, strips=True,
    ),
    "llama2": Family(
        lambda: sentencepiece((), LLAMA2, **LLAMA_TOKENS),
        "<s>[INST] Name a river. [/INST] The Rhine. </s>",
        "</s>", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST]", lead=" ", tail=" ", bos=1, strips=True,
    ),
    "mistral-old": Family(
        lambda: sentencepiece((), MISTRAL_OLD, **LLAMA_TOKENS),
        "<s>[INST] Name a river. [/INST]The Rhine.</s>",
        "</s>", "<s>[INST] Be brief.\n\nHello [/INST]", bos=1,
    ),
    "mistral-new": Family(
        lambda: sentencepiece(("[INST]", "[/INST]"), MISTRAL_NEW, **LLAMA_TOKENS),
        "<s>[INST] Name a river.[/INST] The Rhine.</s>",
        "</s>", "<s>[INST] Be brief.\n\nHello[/INST]", lead=" ", bos=1, strips=True,
    ),
    "mistral-byte-level": Family(
        lambda: byte_level(("[INST]", "[/INST]"), MISTRAL_KEEPS, **LLAMA_TOKENS),
        "<s>[INST] Name a river.[/INST] The Rhine.</s>",
        "</s>", "<s>[INST] Be brief.\n\nHello[/INST]", lead=" ", bos=1,
    ),
    "qwen25": Family(
        lambda: byte_level(IM, QWEN25, eos="<|im_end|>", pad="<|endoftext|>"),
        _chatml_example(QWEN_SYSTEM), "<|im_end|>", _chatml_system(),
    ),
    "qwen3": Family(_qwen3, _chatml_example(think=THINK), "<|im_end|>", _chatml_system(THINK)),
    "gemma": Family(
        lambda: sentencepiece(
            ("<start_of_turn>", "<end_of_turn>"), GEMMA, prefix=False, bos="<bos>", eos="<eos>", pad="<pad>", adds_bos=True
        ),
        "<bos><start_of_turn>user\nName a river.<end_of_turn>\n<start_of_turn>model\nThe Rhine.<end_of_turn>",
        "<end_of_turn>", "<bos><start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\n",
        bos=1, strips=True,
    ),
    "chatml": Family(lambda: byte_level(IM, CHATML, eos="<eos>"), _chatml_example(), "<|im_end|>", _chatml_system()),
    "chatml-unflagged": Family(
        lambda: byte_level(IM, CHATML, special=False, eos="<eos>"), _chatml_example(), "<|im_end|>", _chatml_system()
    ),
    "chatml-generation-marks": Family(
        lambda: byte_level(IM, GENERATION_MARKS, eos="<|im_end|>"), _chatml_example(), "<|im_end|>", _chatml_system()
    ),
    "phi3": Family(
        lambda: sentencepiece(("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), PHI3, bos="<s>", eos="<|endoftext|>"),
        "<|user|>\nName a river.<|end|>\n<|assistant|>\nThe Rhine.<|end|>",
        "<|end|>", "<|system|>\nBe brief.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\n",
    ),
    "phi4": Family(
        lambda: byte_level((*IM, "<|im_sep|>"), PHI4, eos="<|im_end|>", pad="<|dummy|>"),
        "<|im_start|>user<|im_sep|>Name a river.<|im_end|><|im_start|>assistant<|im_sep|>The Rhine.<|im_end|>",
        "<|im_end|>",
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hello<|im_end|>"
        "<|im_start|>assistant<|im_sep|>",
    ),
    "deepseek2": Family(
        lambda: byte_level((), DEEPSEEK2, **DEEPSEEK_TOKENS),
        "<\uff5cbegin\uff5c>User: Name a river.\n\nAssistant: The Rhine.<\uff5cend\uff5c>",
        "<\uff5cend\uff5c>", "<\uff5cbegin\uff5c>Be brief.\n\nUser: Hello\n\nAssistant:", lead=" ", bos=1,
    ),
    "deepseek3": Family(
        lambda: byte_level(("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"), DEEPSEEK3, **DEEPSEEK_TOKENS),
        "<\uff5cbegin\uff5c><\uff5cUser\uff5c>Name a river.<\uff5cAssistant\uff5c>The Rhine.<\uff5cend\uff5c>",
        "<\uff5cend\uff5c>", "<\uff5cbegin\uff5c>Be brief.<\uff5cUser\uff5c>Hello<\uff5cAssistant\uff5c>", bos=1,
    ),
    "endless": Family(
        lambda: byte_level((), ENDLESS, eos="<eos>"),
        "### user:\nName a river.\n\n### assistant:\nThe Rhine.<eos>",
        "<eos>", "### system:\nBe brief.\n\n### user:\nHello\n\n### assistant:\n",
    ),
}  # fmt: skip
