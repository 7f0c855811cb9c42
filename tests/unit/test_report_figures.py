"""Every figure is named in each list that it belongs to: measured, estimated, summarised, called by a name, shown."""

from selfreward.evals.figures import DETAILS, KINDS
from selfreward.report import page, table
from selfreward.report.names import NAMES
from selfreward.report.summary import (
    DIFFERENCE_FIGURES,
    MODEL_FIGURES,
    ORACLE_ROUND_FIGURES,
    ROUND_FIGURES,
    VOTE_FIGURES,
)

GROUPED = [figure for figures in page.GROUPS.values() for figure in figures]


def test_the_summary_takes_over_every_evaluated_figure():
    text = {"distinct_1", "distinct_2"}
    assert KINDS.keys() | text == (set(MODEL_FIGURES) - set(VOTE_FIGURES)) | set(ORACLE_ROUND_FIGURES)
    assert not DETAILS & KINDS.keys()
    assert not set(MODEL_FIGURES) & set(ROUND_FIGURES)


def test_every_figure_has_a_name_and_no_name_is_left_over():
    assert NAMES.keys() == {*MODEL_FIGURES, *ROUND_FIGURES}


def test_the_page_shows_every_figure_once():
    assert sorted(GROUPED) == sorted(MODEL_FIGURES)
    assert sorted(page.ROUND_ROWS) == sorted(ROUND_FIGURES)


def test_tables_and_tiles_show_what_there_is():
    assert set(table.COLUMNS) <= set(MODEL_FIGURES)
    assert set(table.CHANGES) <= set(DIFFERENCE_FIGURES)
    assert page.TILES.keys() <= set(DIFFERENCE_FIGURES) <= set(MODEL_FIGURES)
