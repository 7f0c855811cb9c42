"""What prompts share, found in their token ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward.engines._tree import LEAST_SHARED, Family, Job, num_common, plan_families
from selfreward.types import Request, Sampling


def job(ids: list[int], rows: int = 1) -> Job:
    return Job(tuple(ids), tuple(Request(f"{ids}/{row}", "", Sampling(1), row) for row in range(rows)))


def check(families: list[Family], jobs: list[Job]) -> None:
    """Every job stands once, begins with its root, and shares with its stem what the plan says."""
    leaves = [leaf for family in families for leaf in family.leaves]
    assert sorted(leaf.job.ids for leaf in leaves) == sorted(item.ids for item in jobs)
    for family in families:
        stems: dict[int, tuple[int, ...]] = {}
        for leaf in family.leaves:
            assert leaf.num_root == len(family.root) <= leaf.num_stem < len(leaf.job.ids), "each has a token of its own"
            assert leaf.job.ids[: leaf.num_root] == family.root
            assert stems.setdefault(leaf.stem, leaf.job.ids[: leaf.num_stem]) == leaf.job.ids[: leaf.num_stem]
        numbers = [leaf.stem for leaf in family.leaves]
        assert [number for place, number in enumerate(numbers) if not place or numbers[place - 1] != number] == sorted(
            set(numbers)
        ), "leaves of one stem stand together"


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40).map(tuple), min_size=1, max_size=30, unique=True))
def test_any_prompts_have_a_plan_that_holds(prompts: list[tuple[int, ...]]) -> None:
    jobs = [job(list(ids)) for ids in prompts]
    families = plan_families(jobs)
    check(families, jobs)
    assert plan_families(jobs[::-1]) == families, "whatever their order"


def test_a_rubric_is_the_root_and_an_instruction_the_stem() -> None:
    rubric, instructions = list(range(100, 160)), [[number] * 20 for number in range(5)]
    jobs = [job([*rubric, *text, 50 + n, 60], rows=3) for text in instructions for n in range(4)]
    (family,) = plan_families(jobs)
    check([family], jobs)
    assert family.root == tuple(rubric)
    assert {leaf.num_stem for leaf in family.leaves} == {80}
    assert len({leaf.stem for leaf in family.leaves}) == 5


def test_two_rubrics_are_two_families() -> None:
    rubrics = [[7, *range(100, 160)], [7, *range(200, 260)]]
    jobs = [job([*rubric, number, number], rows=3) for rubric in rubrics for number in range(40)]
    families = plan_families(jobs)
    check(families, jobs)
    assert sorted(family.root for family in families) == [tuple(rubric) for rubric in rubrics]


def test_few_prompts_do_not_part_from_the_rest() -> None:
    jobs = [job([7, *range(100, 160), number]) for number in range(3)] + [job([7, 8, number]) for number in range(90)]
    (family,) = plan_families(jobs)
    assert family.root == ()
    check([family], jobs)


def test_equal_prompts_and_prefixes_of_each_other_keep_a_token() -> None:
    short, long = list(range(20)), list(range(30))
    (family,) = plan_families([job(short), job(long)])
    assert family.root == tuple(range(19))
    assert plan_families([]) == []
    (single,) = plan_families([job(long)])
    assert (single.root, single.leaves[0].num_stem) == ((), 0)


@pytest.mark.parametrize("size", [0, 1, LEAST_SHARED - 1, LEAST_SHARED, 200])
def test_common_beginnings_are_counted(size: int) -> None:
    same = tuple(range(size))
    assert num_common((*same, -1, 5), (*same, -2, 5)) == size
    assert num_common(same, (*same, 3)) == size
