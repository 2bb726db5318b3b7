"""Group items by keys of which some fields may be missing, in time linear in the number of items."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from heapq import merge
from itertools import compress, islice
from typing import TypeVar

Item = TypeVar("Item")
Key = tuple[Hashable, ...]  # None for a missing field

MOST_TRIED = 100  # groups with matching keys: a patient and study has fewer kinds of images of one size


class KeyIndex:
    """Index of keys that finds those matching a given key: each field is equal, or missing in one of the two."""

    def __init__(self) -> None:
        self._keys: dict[tuple[bool, ...], list[tuple[int, Key]]] = {}  # by which fields are present
        # By the fields present and those compared: the numbers of the keys with given values of the latter.
        self._tables: dict[tuple[tuple[bool, ...], tuple[bool, ...]], dict[Key, list[int]]] = {}
        self._count = 0

    def add(self, key: Key) -> None:
        """Add a key. Keys are numbered from 0 in the order in which they are added."""
        has = _present(key)
        self._keys.setdefault(has, []).append((self._count, key))
        for (of, compared), table in self._tables.items():
            if of == has:
                table.setdefault(tuple(compress(key, compared)), []).append(self._count)
        self._count += 1

    def matching(self, key: Key) -> Iterator[int]:
        """Yield the numbers of the matching keys in ascending order, at most ``MOST_TRIED``."""
        has = _present(key)
        found = []
        for of in self._keys:
            compared = tuple(a and b for a, b in zip(of, has, strict=True))
            found.append(self._table(of, compared).get(tuple(compress(key, compared)), []))
        return islice(merge(*found), MOST_TRIED)

    def _table(self, of: tuple[bool, ...], compared: tuple[bool, ...]) -> dict[Key, list[int]]:
        if (of, compared) not in self._tables:
            table = self._tables[of, compared] = {}
            for number, key in self._keys[of]:
                table.setdefault(tuple(compress(key, compared)), []).append(number)
        return self._tables[of, compared]


def _present(key: Key) -> tuple[bool, ...]:
    return tuple(field is not None for field in key)


def grouped(items: Sequence[Item], key: Callable[[Item], Key], same: Callable[[Item, Item], bool]) -> list[list[Item]]:
    """Put each item into the first group with ``same(its first item, item)``; only matching keys are compared."""
    groups: list[list[Item]] = []
    keys = KeyIndex()
    for item in items:
        of_item = key(item)
        number = next((n for n in keys.matching(of_item) if same(groups[n][0], item)), None)
        if number is None:
            keys.add(of_item)
            groups.append([item])
        else:
            groups[number].append(item)
    return groups
