"""Batches of members: bounded, ordered, and stable when a member joins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergetime.study.job_batches import Batch, batches

IDS = st.lists(st.text("abcdefgh_.0123456789", min_size=1, max_size=12), max_size=40, unique=True)
SIZES = st.integers(1, 6)


@given(IDS, SIZES)
def test_every_member_is_in_one_batch_and_keeps_its_place(ids: list[str], size: int) -> None:
    found = batches(ids, size)
    assert sorted(name for batch in found for name in batch.members) == sorted(ids)
    assert all(1 <= len(batch) <= size for batch in found)
    assert all(sorted(batch.members, key=ids.index) == list(batch.members) for batch in found)
    numbers = [batch.number for batch in found]
    assert numbers == sorted(set(numbers))


@given(IDS, SIZES, st.integers(0, 40), st.text("xyz", min_size=1, max_size=5))
def test_a_new_member_changes_only_the_batch_that_it_joins(ids: list[str], size: int, place: int, new: str) -> None:
    before, after = (batches(all_ids, size) for all_ids in (ids, [*ids[:place], new, *ids[place:]]))
    gone = [batch for batch in before if batch not in after]
    assert len(gone) <= 1
    joined = [batch for batch in after if batch not in before]
    left = {name for batch in gone for name in batch.members}
    assert {name for batch in joined for name in batch.members} == left | {new}
    # A batch that overflows is split; one that has room keeps its number.
    assert len(joined) == 1 or all(len(batch) == size for batch in gone)
    assert not gone or len(joined) > 1 or joined[0].number == gone[0].number


@given(IDS, SIZES, st.randoms())
def test_the_order_of_the_ids_moves_no_member(ids: list[str], size: int, random: object) -> None:
    shuffled = list(ids)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found, wanted = ({batch.number: set(batch.members) for batch in batches(some, size)} for some in (shuffled, ids))
    assert found == wanted


def test_what_fits_one_job_is_batch_0() -> None:
    assert batches(["ties", "dare"], 2) == [Batch(0, ("ties", "dare"))]
    assert batches([], 2) == []


def test_numbers_are_those_of_the_tries_nodes() -> None:
    """SHA-256 of slerp, star and ties begins with the bits 00, 01 and 10."""
    assert batches(["ties", "slerp"], 1) == [Batch(1, ("slerp",)), Batch(2, ("ties",))]
    found = batches(["ties", "slerp", "star"], 1)
    assert found == [Batch(2, ("ties",)), Batch(3, ("slerp",)), Batch(4, ("star",))]


def test_what_makes_no_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="a member is there twice"):
        batches(["ties", "ties"], 2)
    with pytest.raises(ValueError, match="take one at least"):
        batches(["ties"], 0)
