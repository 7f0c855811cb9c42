"""docs/config-checks.md says what is checked: its table of rules is the code's. Run this file to write the table again."""

from pathlib import Path

from selfreward.config.rules import RULES

PAGE = Path(__file__).parents[2] / "docs" / "config-checks.md"
BEGIN, END = "<!-- rules -->\n", "<!-- end of rules -->\n"


def table() -> str:
    """The rules as a table, in the order in which they are looked at."""
    rows = [f"| `{rule.name}` | {rule.says} | {', '.join(f'`{name}`' for name in rule.reads)} |" for rule in RULES]
    return "\n".join(["| rule | what must hold | settings |", "|---|---|---|", *rows]) + "\n"


def parts() -> tuple[str, str, str]:
    """The page before, in and behind its table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside, after


def test_the_page_holds_the_table_of_rules() -> None:
    assert parts()[1] == table(), f"the page is stale; write it again: python {Path(__file__).name}"


if __name__ == "__main__":
    start, _, end = parts()
    PAGE.write_text(f"{start}{BEGIN}{table()}{END}{end}", encoding="utf-8")
