"""The micro-world's word-level tokenizer with its chat template."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from selfreward.lab.corpus import RUBRIC, documents
from selfreward.lab.world import CATEGORIES, NUMBERS, ORDINALS, WORDS

BOS, EOS, PAD, UNK = "<s>", "<|end|>", "<pad>", "<unk>"
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"
SPECIALS = (PAD, UNK, BOS, EOS, SYSTEM, USER, ASSISTANT)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] + ' ' }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)
_SAMPLED_DOCUMENTS = 20_000


def build_tokenizer(context_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that knows every word of the corpus; ids are stable because the words are sorted."""
    words = {*WORDS, *NUMBERS, *ORDINALS, *CATEGORIES, *RUBRIC.split(), *"012345"}
    stream = documents(seed=-1)
    for _ in range(_SAMPLED_DOCUMENTS):
        words.update(next(stream).split())
    vocabulary = {word: index for index, word in enumerate((*SPECIALS, *sorted(words - set(SPECIALS))))}
    model = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    model.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
