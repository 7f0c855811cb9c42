"""The `endpoints` section: what it takes, what it refuses, and that its errors repeat no secret."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfreward.config import Config, load_config, parse_config
from selfreward.errors import ConfigError, MissingExtraError
from selfreward.preflight import check_config

SECRET = "hunter2-0123"
GOOD = {"base_url": "https://models.example/v1/", "model": "big"}


def tree(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "endpoints": {"far": {**GOOD, **changes}}}


def test_a_good_endpoint_loads_and_stays_as_it_is() -> None:
    config = parse_config(tree())
    far = config.endpoints["far"]
    assert (far.base_url, far.model, far.api, far.api_key_env) == ("https://models.example/v1", "big", "chat", None)
    with pytest.raises(ValueError, match="frozen"):
        far.model = "other"
    assert parse_config(config.model_dump()) == config
    assert parse_config({"name": "a"}).endpoints == {}


def test_overrides_reach_an_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nendpoints:\n  far: {base_url: 'http://localhost:1/v1', model: m}\n")
    overrides = ["endpoints.far.max_concurrency=3", "endpoints.near.base_url=http://[::1]:8000/v1", "endpoints.near.model=n"]
    config = load_config(path, [*overrides, "judge.model=endpoint:near"])
    assert (config.endpoints["far"].max_concurrency, config.endpoints["near"].base_url) == (3, "http://[::1]:8000/v1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_url": f"http://me:{SECRET}@host/v1"}, "endpoints.far.base_url looks like a user and password"),
        ({"base_url": f"http://{SECRET}@host/v1"}, "no user, password, query or fragment"),
        ({"base_url": f"http://host/v1?key={SECRET}"}, "no user, password, query or fragment"),
        ({"base_url": f"http://[{SECRET}/v1"}, "is no URL"),
        ({"base_url": f"{SECRET}"}, "must be an http:// or https:// URL"),
        ({"base_url": f"ftp://{SECRET}/v1"}, "must be an http:// or https:// URL"),
        ({"base_url": f"http:///{SECRET}"}, "must be an http:// or https:// URL"),
        ({"api_key_env": f"sk-{SECRET}"}, "must be the name of an environment variable, in capitals"),
        ({"api_key_env": SECRET.replace("-", "_")}, "must be the name of an environment variable, in capitals"),
        ({"api_key_env": [SECRET]}, "endpoints.far.api_key_env must be a text"),
        ({"base_url": [f"http://me:{SECRET}@host/v1"]}, "endpoints.far.base_url[0] looks like a user and password"),
        ({"api_key": SECRET}, "unknown setting 'endpoints.far.api_key': a config holds no secret: export it"),
    ],
)
def test_what_may_hold_a_secret_is_refused_without_repeating_it(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree(**changes))
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("override", [f"endpoints.far.api_key_env=[{SECRET}", f"endpoints.far.base_url.x=http://me:{SECRET}@h"])
def test_a_wrong_override_is_not_repeated(tmp_path: Path, override: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nendpoints:\n  far: {base_url: 'http://localhost:1/v1', model: m}\n")
    with pytest.raises(ConfigError, match=r"endpoints\.far") as caught:
        load_config(path, [override])
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^command line: 'judge\.model=\[x': the value is not valid YAML: .+"):
        load_config(path, ["judge.model=[x"])


@pytest.mark.parametrize(("endpoints", "key"), [({"far": f"http://{SECRET}@host/v1"}, "endpoints.far"), (SECRET, "endpoints")])
def test_a_wrong_section_is_not_repeated(endpoints: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"config: {key} must be a mapping of settings") as caught:
        parse_config({"name": "a", "endpoints": endpoints})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modell": "x"}, "unknown setting 'endpoints.far.modell'; did you mean 'model'"),
        ({"api": "responses"}, "endpoints.far.api must be one of chat, completions"),
        ({"max_concurrency": 0}, "endpoints.far.max_concurrency must be at least 1"),
        ({"timeout_s": 0}, "endpoints.far.timeout_s must be above 0"),
        ({"model": ""}, "endpoints.far.model must not be empty"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree(**changes))
    assert said in str(caught.value)


@pytest.mark.parametrize("role", ["judge", "propose"])
def test_an_unknown_endpoint_is_named_when_the_config_loads(role: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{role}\.model='endpoint:fra' names no endpoint; did you mean endpoint:far\?.*: far"
    ):
        parse_config({**tree(), role: {"model": "endpoint:fra"}})
    with pytest.raises(ConfigError, match=r"names no endpoint; endpoints knows: none"):
        parse_config({"name": "a", role: {"model": "endpoint:"}})


def test_every_member_of_a_panel_is_looked_up() -> None:
    with pytest.raises(ConfigError, match=r"judge\.panel\[1\]\.model=.endpoint:fra. names no endpoint; did you mean"):
        parse_config({**tree(), "judge": {"panel": [{"model": "endpoint:far"}, {"model": "endpoint:fra"}]}})


def test_the_policy_must_be_trainable() -> None:
    with pytest.raises(ConfigError, match=r"model\.path='endpoint:far': an endpoint cannot be trained"):
        parse_config({**tree(), "model": {"path": "endpoint:far"}})


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    """`config(api=..., judge={...})`: judge.model is an endpoint unless a section says otherwise."""

    def make(judge: Any = None, propose: Any = None, **changes: Any) -> Config:
        sections = {"judge": {"model": "endpoint:far", **(judge or {})}, "propose": propose or {}}
        return parse_config({**tree(**changes), **sections})

    return make


def test_a_check_names_the_endpoint_and_asks_nobody(config: Callable[..., Config]) -> None:
    assert "judge.model: big at https://models.example/v1 (chat)" in check_config(config())


def test_the_kind_of_prompt_must_fit(config: Callable[..., Config]) -> None:
    with pytest.raises(
        ConfigError, match=r"judge\.model='endpoint:far': rubric 'additive' has format chat, so endpoints\.far\.api"
    ):
        check_config(config(api="completions"))
    plain = {"model": "endpoint:far", "template": "lab_self_instruct"}
    with pytest.raises(
        ConfigError, match=r"propose\.model='endpoint:far'.*format completion, so endpoints\.far\.api must be compl"
    ):
        check_config(config(propose=plain))
    lines = check_config(config(judge={"model": "policy"}, propose=plain, api="completions"))
    assert "propose.model: big at https://models.example/v1 (completions)" in lines


def test_a_panel_member_is_checked_like_the_judge(config: Callable[..., Config]) -> None:
    panel = {"model": "policy", "panel": [{"model": "policy"}, {"model": "endpoint:far"}]}
    assert "judge.panel[1].model: big at https://models.example/v1 (chat)" in check_config(config(judge=panel))
    with pytest.raises(ConfigError, match=r"judge\.panel\[1\]\.model='endpoint:far'.*judge\.max_tokens=512 leaves no room"):
        check_config(config(judge=panel, context_length=512))


def test_replies_must_leave_room_for_a_prompt(config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"judge\.max_tokens=512 leaves no room.*endpoints\.far\.context_length=512"):
        check_config(config(context_length=512))


def test_too_many_stop_strings_are_refused(config: Callable[..., Config], tmp_path: Path) -> None:
    rubric = tmp_path / "many.md"
    stops = ", ".join(f"'{letter}{letter}'" for letter in "abcde")
    rubric.write_text(
        f"---\nname: many\nkind: pointwise\nformat: chat\nscale: [0, 5]\nexample: 'Score: 4'\nstop: [{stops}]\n---\n"
        "{{ instruction }} {{ response }} Score: 0-5\n"
    )
    with pytest.raises(ConfigError, match="has 5 stop strings; the API takes 4"):
        check_config(config(judge={"rubric": str(rubric)}))


def test_the_key_must_be_there(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAR_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"the variable that endpoints\.far\.api_key_env names \(FAR_KEY\) is not set"):
        check_config(config(api_key_env="FAR_KEY"))
    monkeypatch.setenv("FAR_KEY", SECRET)
    assert not [line for line in check_config(config(api_key_env="FAR_KEY")) if SECRET in line]


def test_the_package_must_be_there(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'selfreward\[endpoint\]'"):
        check_config(config())
    check_config(config(judge={"model": "policy"}))


def test_what_may_be_a_key_in_the_wrong_place_is_not_shown(config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="is not set") as caught:
        check_config(config(api_key_env="AKIA7EXAMPLE99"))
    assert "AKIA" not in str(caught.value)
