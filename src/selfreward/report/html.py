"""report.html: the whole run on one self-contained page. Everything that comes from data is escaped by the template engine;
a content security policy forbids any script but the page's own, and any request.
"""

import base64
import hashlib
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from selfreward.artifacts import RunDir, write_bytes
from selfreward.report.page import build_page
from selfreward.report.reading import Json
from selfreward.report.summary import build_summary


def write_report(run_dir: RunDir, summary: Json | None = None) -> None:
    """Render the run's page from its artifacts and store it as report.html. Raises CorruptArtifactError.

    `summary` is the run's summary where it is already at hand; its bootstraps are the slow part of a page.
    """
    # Text from a damaged tokenizer can hold lone surrogates, which UTF-8 has no bytes for.
    write_bytes(run_dir.report, render_report(run_dir, summary).encode("utf-8", errors="backslashreplace"))


def render_report(run_dir: RunDir, summary: Json | None = None) -> str:
    """The page as text; the same artifacts give the same page."""
    summary = build_summary(run_dir) if summary is None else summary
    script, style = _asset("page.js"), _asset("page.css")
    return render_template({**build_page(run_dir, summary), "script": script, "style": style, "script_hash": _hash(script)})


def render_template(page: dict[str, Any]) -> str:
    """Fill the template; an unknown name is an error, every value is escaped unless it is markup of ours."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("page.html")).render(page)


def _asset(name: str) -> str:
    return resources.files("selfreward.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """The script's hash as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
