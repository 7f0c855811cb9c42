"""When a reply ends, token by token, against reading the whole text at every token."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfreward.engines._replies import Reader, Reply
from selfreward.types import Request, Sampling

STOPS = (" ", "\n", "é", "日本", "the ", "\n\n", "e s")


def reply_to(ids: list[int], tokenizer: Any, stop: tuple[str, ...], limit: int = 1000) -> tuple[int, Any]:
    """Feed tokens until the reply ends; how many it took, and its generation."""
    reader = Reader(tokenizer, frozenset({tokenizer.eos_token_id}))
    reply = Reply(Request("a", "", Sampling(limit, stop=stop), 0), 7, limit, reader)
    for token in ids:
        if reply.is_done:
            break
        reply.add(token)
    return len(reply.ids), reply.generation()


def check_against_reading_everything(text: str, tokenizer: Any, stop: tuple[str, ...]) -> None:
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    whole = [
        tokenizer.decode(ids[:n], skip_special_tokens=True, clean_up_tokenization_spaces=False) for n in range(len(ids) + 1)
    ]
    first = next((n for n, start in enumerate(whole) if any(s in start for s in stop)), len(ids))
    taken, generation = reply_to(ids, tokenizer, stop)
    assert taken == generation.num_tokens == first
    assert generation.finish_reason == "stop"
    cuts = [whole[first].find(s) for s in stop if s in whole[first]]
    assert generation.text == whole[first][: min(cuts, default=None)]
    assert not any(s in generation.text for s in stop)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="the seé日本x\n ", max_size=24), stop=st.lists(st.sampled_from(STOPS), max_size=2))
def test_stop_strings_end_a_reply_at_once_byte_level(text: str, stop: list[str]) -> None:
    check_against_reading_everything(text, BYTE_LEVEL, tuple(stop))


@settings(max_examples=100, deadline=None)
@given(
    words=st.lists(st.sampled_from(["the", "s", "sea", ".", "e"]), max_size=12),
    stop=st.lists(st.sampled_from(STOPS), max_size=2),
)
def test_stop_strings_end_a_reply_at_once_word_level(words: list[str], stop: list[str]) -> None:
    check_against_reading_everything(" ".join(words), WORD_LEVEL, tuple(stop))


def make_word_level() -> Any:
    core = Tokenizer(models.WordLevel({"<e>": 0, "<u>": 1, "the": 2, "s": 3, "sea": 4, ".": 5, "e": 6}, unk_token="<u>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<e>", unk_token="<u>")


def make_byte_level() -> Any:
    """One token a byte: characters outside ASCII take several."""
    alphabet = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab={**alphabet, "<e>": 256}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<e>")


BYTE_LEVEL, WORD_LEVEL = make_byte_level(), make_word_level()


def test_text_is_kept_as_it_was_generated(tiny_tokenizer: Any) -> None:
    text = "  one , two .\nlast line ' s  "
    _, generation = reply_to([*tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id], tiny_tokenizer, ())
    assert generation.text == text
    assert (generation.finish_reason, generation.num_prompt_tokens) == ("stop", 7)


def test_the_limit_ends_a_reply_unless_a_stop_string_does(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer("x\ny")["input_ids"]
    assert len(ids) == 3
    assert reply_to(ids, tiny_tokenizer, (), limit=2)[1].finish_reason == "length"
    stopped = reply_to(ids, tiny_tokenizer, ("\n",), limit=2)[1]
    assert (stopped.text, stopped.finish_reason) == ("x", "stop")
    assert reply_to([*ids, tiny_tokenizer.eos_token_id], tiny_tokenizer, (), limit=4)[1].finish_reason == "stop"


@pytest.mark.parametrize("control", ["<|im_start|>", "<s>", "<pad>"])
@pytest.mark.parametrize("stop", [(), ("never",)])
def test_any_control_token_ends_a_reply(control: str, stop: tuple[str, ...], tiny_tokenizer: Any) -> None:
    """A model that opens another turn by itself: were the token left out, its text would run into what follows."""
    ids = tiny_tokenizer(f"answer{control}user go on<|im_end|>")["input_ids"]
    taken, generation = reply_to(ids, tiny_tokenizer, stop)
    assert (generation.text, generation.finish_reason) == ("answer", "stop")
    assert taken == generation.num_tokens == len(tiny_tokenizer("answer")["input_ids"]) + 1


def test_a_control_token_at_the_limit_is_an_end(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer("x<|im_start|>")["input_ids"]
    assert reply_to(ids, tiny_tokenizer, (), limit=2)[1].finish_reason == "stop"


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_an_unknown_word_is_seen_in_the_text(stop: tuple[str, ...]) -> None:
    """It stands for data and ends nothing, but a reply must not look as if there was no word."""
    ids = [*WORD_LEVEL("the sea")["input_ids"], WORD_LEVEL.unk_token_id, WORD_LEVEL.eos_token_id]
    generation = reply_to(ids, WORD_LEVEL, stop)[1]
    assert (generation.text, generation.num_tokens, generation.finish_reason) == ("the sea <u>", 4, "stop")


def test_a_reply_that_goes_on_has_no_generation(tiny_tokenizer: Any) -> None:
    with pytest.raises(AssertionError, match="'a' is not done"):
        reply_to(tiny_tokenizer("x")["input_ids"], tiny_tokenizer, ())
