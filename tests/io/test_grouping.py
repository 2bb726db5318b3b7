"""Groups are the same as from comparing all items with each other."""

from hypothesis import given
from hypothesis import strategies as st

from attunet3d.io.grouping import MOST_TRIED, Key, KeyIndex, grouped


def agree(a: Key, b: Key) -> bool:
    return all(x == y or x is None or y is None for x, y in zip(a, b, strict=True))


@given(st.lists(st.tuples(*[st.none() | st.integers(0, 2)] * 3), max_size=30))
def test_items_join_the_first_matching_group(items: list[Key]) -> None:
    expected: list[list[Key]] = []
    for item in items:
        home = next((group for group in expected if agree(group[0], item)), None)
        if home is None:
            expected.append([item])
        else:
            home.append(item)
    assert grouped(items, lambda item: item, agree) == expected


def test_items_are_only_compared_with_matching_keys() -> None:
    compared = []

    def same(a: Key, b: Key) -> bool:
        compared.append((a, b))
        return agree(a, b)

    items: list[Key] = [(n, None if n % 3 else n) for n in range(3000)]
    assert len(grouped(items * 2, lambda item: item, same)) == 3000
    assert len(compared) == 3000  # each with itself


def test_the_number_of_matching_keys_is_limited() -> None:
    keys = KeyIndex()
    for _ in range(3 * MOST_TRIED):
        keys.add((1, None))
    assert list(keys.matching((1, 2))) == list(range(MOST_TRIED))
