"""Judge and proposer behind an endpoint: same judgements as without one, records that name it, a key that stays outside."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer, Fault, refusal, serving
from stage_bench import Stages, model, record

from selfreward.artifacts import Artifact, Run, read_rows
from selfreward.engines.scripted import ScriptedEngine
from selfreward.errors import DriftError, EngineError
from selfreward.stages import judge, propose, sample, seed
from selfreward.stages._roles import cast_role
from selfreward.types import Judgement, Message, Prompt, Request, Sampling

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def server(settings: dict[str, Any]) -> Iterator[EndpointServer]:
    """Answers as the scripted model does, and wants a key."""
    script = ScriptedEngine.open(settings["engine"]["script"])

    def brain(asked: str, seed: int) -> str:
        (reply,) = script.generate([Request("x", (Message("user", asked),), Sampling(10_000), seed)])
        return reply.text

    with serving(brain) as made:
        yield made


@pytest.fixture
def endpoint_stages(settings: dict[str, Any], server: EndpointServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stages]:
    monkeypatch.setenv("FAR_KEY", KEY)
    endpoint = server.settings(api_key_env="FAR_KEY", send_seed=True, max_concurrency=3, max_retries=40, max_wait_s=0.05)
    opened = Stages({**settings, "endpoints": {"far": endpoint}})
    yield opened
    opened.close()


def one_round(run: Run) -> dict[str, Artifact]:
    data, policy = seed.run(run), model(run)
    prompts = propose.run(run, 1, policy, data, [])
    samples = sample.run(run, 1, policy, prompts)
    return {"prompts": prompts, "samples": samples, "judgements": judge.run(run, 1, policy, samples)}


def judgements(made: dict[str, Artifact]) -> list[Judgement]:
    return read_rows(made["judgements"].path / "judgements.parquet", Judgement)


def unnamed(made: dict[str, Artifact]) -> list[Judgement]:
    """The judgements without who gave them."""
    return [replace(row, votes=tuple(replace(vote, member="") for vote in row.votes)) for row in judgements(made)]


def files_with(root: Path, text: str) -> list[str]:
    return [str(path) for path in root.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


BOTH = {"judge": {"model": "endpoint:far"}, "propose": {"model": "endpoint:far", "num_prompts": 6, "max_attempts": 60}}


def test_a_round_with_an_endpoint_in_both_roles(endpoint_stages: Stages, server: EndpointServer) -> None:
    server.delay_of = lambda asked: 0.02
    run = endpoint_stages.run(**BOTH)
    made = one_round(run)
    assert record(made["prompts"])["roles"] == {"policy": "m1", "proposer": "endpoint:far"}
    assert record(made["judgements"])["roles"] == {"policy": "m1", "judge": "endpoint:far"}
    shown = {"base_url": server.url, "model": "tiny", "api": "chat", "send_seed": True}
    assert record(made["prompts"])["sections"]["player"] == {"endpoint": shown}
    assert record(made["judgements"])["sections"]["members"]["0"]["player"] == {"endpoint": shown}
    for stage in ("prompts", "judgements"):
        assert "model" not in record(made[stage])["inputs"]
        assert record(made[stage])["tokens"]["generated"] > 0
    assert len(read_rows(made["prompts"].path / "prompts.parquet", Prompt)) == 6
    assert 1 < server.most_at_a_time <= 3
    assert all(call.headers["authorization"] == f"Bearer {KEY}" for call in server.calls)
    assert not files_with(run.dir.root, KEY)
    assert files_with(run.dir.root, "FAR_KEY"), "the search finds what is there"


def test_the_endpoint_judges_as_its_model_would_here(endpoint_stages: Stages, settings: dict[str, Any]) -> None:
    far = one_round(endpoint_stages.run(name="far", judge={"model": "endpoint:far"}))
    near = one_round(endpoint_stages.run(name="near", judge={"model": f"scripted:{settings['engine']['script']}"}))
    assert {vote.member for row in judgements(far) for vote in row.votes} == {"endpoint:far additive"}
    assert unnamed(far) == unnamed(near)
    assert record(far["judgements"])["counts"] == record(near["judgements"])["counts"]
    assert record(far["judgements"])["tokens"] == record(near["judgements"])["tokens"]


def test_faults_that_pass_leave_no_trace_in_the_results(endpoint_stages: Stages, server: EndpointServer) -> None:
    calm = one_round(endpoint_stages.run(name="calm", **BOTH))
    faults = [refusal(500, "oops"), None, Fault(body="<html>"), refusal(429, "slow", retry_after="0.01"), None, Fault(cut=True)]
    server.faults = faults * 4
    stormy = one_round(endpoint_stages.run(name="stormy", **BOTH))
    assert not server.faults
    for name in calm:
        for field in ("outputs", "counts", "tokens", "notes"):
            assert record(stormy[name])[field] == record(calm[name])[field], name


def test_a_refused_key_stops_the_run_and_the_log_does_not_hold_it(endpoint_stages: Stages, server: EndpointServer) -> None:
    server.faults_of = {}
    run = endpoint_stages.run(**BOTH)
    data = seed.run(run)
    server.faults = [refusal(401, f"who is {KEY}?")]
    with pytest.raises(EngineError, match=r"endpoint 'far' refused .* status 401: .*who is \*\*\*\?.*api_key_env"), run:
        propose.run(run, 1, model(run), data, [])
    assert "status 401" in run.dir.log.read_text()
    assert not files_with(run.dir.root, KEY)


def test_a_budget_keeps_finished_chunks(endpoint_stages: Stages, server: EndpointServer) -> None:
    calm = one_round(endpoint_stages.run(name="calm", judge={"model": "endpoint:far"}))
    wanted = len(server.calls)
    server.calls.clear()
    tight = {**server.settings(api_key_env="FAR_KEY", send_seed=True, max_requests=20)}
    with pytest.raises(EngineError, match=r"endpoints\.far\.max_requests=20: 18 sent, 6 more wanted"):
        one_round(endpoint_stages.run(name="tight", judge={"model": "endpoint:far"}, endpoints={"far": tight}))
    endpoint_stages.close()
    paid = len(server.calls)
    assert paid == 18
    more = {**tight, "max_requests": 1000}
    made = one_round(endpoint_stages.run(name="tight", judge={"model": "endpoint:far"}, endpoints={"far": more}))
    assert len(server.calls) == wanted, "nothing was asked twice"
    assert judgements(made) == judgements(calm)
    assert record(made["judgements"])["tokens"] == record(calm["judgements"])["tokens"]


def test_withheld_and_unfitting_votes_are_missing_data(endpoint_stages: Stages, server: EndpointServer) -> None:
    filtered = Fault(body=json.dumps({"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}))
    server.faults = [filtered, refusal(400, "too much", code="context_length_exceeded")]
    made = one_round(endpoint_stages.run(judge={"model": "endpoint:far"}))
    notes = record(made["judgements"])["notes"]
    assert {name: notes["failures"][name] for name in ("content_filter", "too_long")} == {"content_filter": 1, "too_long": 1}
    failed = [vote for item in judgements(made) for vote in item.votes if vote.failure in ("content_filter", "too_long")]
    assert [vote.score for vote in failed] == [None, None]


def test_withheld_proposals_are_dropped_with_their_reason(endpoint_stages: Stages, server: EndpointServer) -> None:
    server.faults = [refusal(400, "not allowed", code="content_filter")]
    run = endpoint_stages.run(**BOTH)
    prompts = propose.run(run, 1, model(run), seed.run(run), [])
    assert record(prompts)["counts"]["dropped"]["content_filter"] == 1


def test_untold_tokens_are_counted_as_untold(endpoint_stages: Stages, server: EndpointServer) -> None:
    server.usage = lambda asked, reply: None
    made = one_round(endpoint_stages.run(judge={"model": "endpoint:far"}))
    found = record(made["judgements"])
    assert found["tokens"] == {"prompt": 0, "generated": 0}
    assert found["notes"]["num_replies_without_token_counts"] == found["notes"]["num_votes"] == len(server.calls)
    assert {vote.num_tokens for item in judgements(made) for vote in item.votes} == {None}
    assert "num_replies_without_token_counts" not in record(made["samples"])["notes"]


def test_what_identifies_an_endpoint(endpoint_stages: Stages, server: EndpointServer) -> None:
    made = one_round(endpoint_stages.run(judge={"model": "endpoint:far"}))
    asked = len(server.calls)
    same = server.settings(send_seed=True, max_concurrency=1, timeout_s=9, max_retries=1, max_requests=9)
    again = one_round(endpoint_stages_again(endpoint_stages, same))
    assert again["judgements"].fingerprint == made["judgements"].fingerprint
    assert len(server.calls) == asked
    for changed in ({"model": "other"}, {"send_seed": False}, {"base_url": f"{server.url}/x"}):
        run = endpoint_stages_again(endpoint_stages, {**same, **changed})
        with pytest.raises(DriftError, match=rf"player\.endpoint\.{next(iter(changed))}"):
            judge.run(run, 1, model(run), made["samples"])
    player = cast_role("endpoint:far", model(run), run.config)
    assert (player.model, player.label, dict(player.inputs)) == ("endpoint:far", "endpoint:far", {})


def endpoint_stages_again(stages: Stages, endpoint: dict[str, Any]) -> Run:
    """The run of the same name with another endpoint section."""
    stages.close()
    return stages.run(judge={"model": "endpoint:far"}, endpoints={"far": endpoint})
