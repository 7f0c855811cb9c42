"""The loss mask of every family of chat templates, token by token, through the very path that trains; padding tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from template_tokenizers import CHATML, FAMILIES, IM, byte_level
from training_reference import context, dpo_options, sequences, sft_options

from selfreward.chat import encode_prompt
from selfreward.engines.hf import HfEngine
from selfreward.engines.loading import load_tokenizer
from selfreward.training import SftExample
from selfreward.training.common import describe_rows, encode_rows
from selfreward.training.sft import train_sft
from selfreward.types import Message, PreferencePair, Request, Sampling

MakeConfig = Callable[..., Any]


@pytest.fixture(scope="session")
def trl_side() -> Any:
    from selfreward.training import _trl

    return _trl


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_folder(tokenizer)`: a random one-layer Llama folder with that tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(tokenizer: Any, rows: int | None = None, **settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = LlamaConfig(
            vocab_size=rows or len(tokenizer), max_position_embeddings=512, initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **sizes, **settings,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def conversations(with_system: bool = True) -> list[SftExample]:
    """Of different lengths."""
    user = (Message("user", "Name a river."),)
    several = (Message("user", "One?"), Message("assistant", "Two."), Message("user", "Three?"))
    headed = (Message("system", "Be brief."), Message("user", "Hello"))
    return [
        SftExample("short", user, "The Rhine."),
        SftExample("turns", several, "The Rhine, the Danube\n\nand the Elbe."),
        *([SftExample("system", headed, "Hi 漢字")] if with_system else []),
    ]


def sft_batch(trl_side: Any, folder: Path, config: Any, scratch: Path) -> tuple[Any, Any, list[SftExample]]:
    """The trainer's own batch of the conversations, with its tokenizer; as `train_sft` makes it."""
    items = conversations()
    base = trl_side.load_base(folder, sft_options(), context(config))
    rows, dropped = encode_rows(base.tokenizer, items, lambda item: (item.answer,), base.limit)
    assert not dropped
    columns = {
        "input_ids": [row.prompt_ids + row.answers[0] for row in rows],
        "labels": [[-100] * len(row.prompt_ids) + row.answers[0] for row in rows],
    }
    trainer = trl_side.sft_trainer(base, columns, sft_options(), 1, scratch)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(items))])
    by_answer = [next(i for i in items if row.answers[0] == _answer_ids(base.tokenizer, i)) for row in rows]
    return base.tokenizer, batch, by_answer


def _answer_ids(tokenizer: Any, item: SftExample) -> list[int]:
    rows, _ = encode_rows(tokenizer, [item], lambda i: (i.answer,), 1000)
    return rows[0].answers[0]


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_loss_covers_the_answer_and_its_end_token_and_nothing_else(
    kind: str, trl_side: Any, make_folder: Callable[..., Path], make_config: MakeConfig, tmp_path: Path
) -> None:
    family = FAMILIES[kind]
    folder = make_folder(family.build())
    config = make_config(model={"path": str(folder)})
    tokenizer, batch, items = sft_batch(trl_side, folder, config, tmp_path)
    end = tokenizer.convert_tokens_to_ids(family.end)
    for (ids, learnt), item in zip(sequences(batch), items, strict=True):
        prompt_ids = encode_prompt(tokenizer, item.messages)
        length, first = len(ids), len(prompt_ids)
        assert ids[:first] == prompt_ids, "byte for byte what generation sees"
        assert learnt == list(range(first, length)), "from the answer's first token to the row's last"
        assert ids[-1] == end
        assert ids[first:length].count(end) == 1
        said = f"{family.lead}{item.answer}{family.tail}{family.end}"
        starts_a_text = tokenizer.decode(ids[first:])
        # Decoded alone, tokens of the SentencePiece kind lose the space at their start.
        assert starts_a_text in (said, said.removeprefix(" "))
        assert tokenizer.decode(ids[:length]).endswith(said)
        num_users = sum(message.role == "user" for message in item.messages)  # Llama 2 writes a BOS before each of them
        assert ids.count(tokenizer.bos_token_id) == family.bos * (num_users if kind == "llama2" else 1)


@pytest.mark.parametrize("kind", ["llama2", "qwen3", "gemma", "endless"])
def test_preference_training_scores_the_same_tokens(
    kind: str, trl_side: Any, make_folder: Callable[..., Path], make_config: MakeConfig, tmp_path: Path
) -> None:
    folder = make_folder(FAMILIES[kind].build())
    config = make_config(model={"path": str(folder)})
    pairs = [PreferencePair(i.id, i.messages, i.answer, "No.", 5, 1, "c", "r") for i in conversations()]
    ctx = context(config)
    base = trl_side.load_base(folder, dpo_options(), ctx)
    rows, _ = encode_rows(base.tokenizer, pairs, lambda pair: (pair.chosen, pair.rejected), base.limit)
    columns = {
        "prompt_ids": [row.prompt_ids for row in rows],
        "chosen_ids": [row.answers[0] for row in rows],
        "rejected_ids": [row.answers[1] for row in rows],
    }
    with trl_side.workspace(base) as scratch:
        trainer = trl_side.dpo_trainer(base, columns, dpo_options(), scratch, ctx)
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(rows))])
    wanted = [(row.prompt_ids, row.answers[side]) for side in (0, 1) for row in rows]
    for (ids, scored), (prompt_ids, answer_ids) in zip(sequences(batch), wanted, strict=True):
        assert scored == list(range(len(prompt_ids), len(prompt_ids) + len(answer_ids)))
        assert [ids[position] for position in scored] == answer_ids
        assert ids[: len(prompt_ids)] == prompt_ids


@pytest.mark.parametrize("kind", ["gemma", "chatml"])
def test_records_count_merged_system_turns(kind: str) -> None:
    tokenizer = FAMILIES[kind].build()
    described = describe_rows(tokenizer, conversations(), None)
    assert described["system_merged"] == (1 if kind == "gemma" else 0)
    assert (described["template"], described["turn_end"]) == ("own", FAMILIES[kind].end)


# --- padding ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def padding_folders(make_folder: Callable[..., Path]) -> dict[str, Path]:
    """The same model with a padding token of its own, with EOS as padding, and with none."""
    folders = {}
    for name, pad in (("own", "<pad>"), ("is-eos", "<|im_end|>"), ("none", None)):
        tokenizer = byte_level((*IM, "<pad>"), CHATML, eos="<|im_end|>")  # the same ids in each, so that the models are equal
        if pad:
            tokenizer.pad_token = pad
        folders[name] = make_folder(tokenizer)
    return folders


@pytest.mark.parametrize("name", ["is-eos", "none"])
def test_training_without_a_padding_token_of_its_own(
    name: str, padding_folders: dict[str, Path], trl_side: Any, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(model={"path": str(padding_folders[name])})
    tokenizer, batch, _ = sft_batch(trl_side, padding_folders[name], config, tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    ends = [[ids[position] for position in learnt].count(tokenizer.eos_token_id) for ids, learnt in sequences(batch)]
    assert ends == [1, 1, 1], "the answer's end is learnt, and no padding behind it"
    losses = {}
    for folder in (name, "own"):
        config = make_config(model={"path": str(padding_folders[folder])})
        result = train_sft(padding_folders[folder], conversations(), tmp_path / folder, sft_options(), context(config))
        losses[folder] = [entry["loss"] for entry in result.history]
    assert losses[name] == pytest.approx(losses["own"], abs=1e-6), "what pads a row decides nothing"


@pytest.mark.parametrize("name", ["is-eos", "none"])
def test_batched_generation_without_a_padding_token_of_its_own(
    name: str, padding_folders: dict[str, Path], make_config: MakeConfig
) -> None:
    folder = padding_folders[name]
    config = make_config(model={"path": str(folder)}, engine={"batch_size": 8})
    requests = [
        Request(f"{i}", (Message("user", "Name a river. " * (i + 1)),), Sampling(12, temperature=1.0, top_p=1.0), seed=i)
        for i in range(5)
    ]
    with HfEngine.open(str(folder), config) as engine:
        together = {reply.request_id: reply.text for reply in engine.generate(requests)}
        alone = {reply.request_id: reply.text for request in requests for reply in engine.generate([request])}
    assert together == alone
    assert load_tokenizer(folder, config).pad_token_id is not None
