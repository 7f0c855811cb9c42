"""docs/sources.md names every option of a source and every format."""

import re
from typing import get_args

from source_tree import ROOT

from selfreward.config import SourceConfig
from selfreward.sources import formats as table

PAGE = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([^`]+)`", PAGE))


def test_every_option_and_every_format_is_named():
    chosen = set(get_args(SourceConfig.model_fields["format"].annotation)) - {"auto", "lab"}
    assert chosen == table.formats(None).keys() | {"seed-folder"}
    assert chosen | SourceConfig.model_fields.keys() <= NAMED
