"""Things put into groups by what they say of themselves, of which some say little, in time as long as their number."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from heapq import merge
from itertools import compress, islice
from typing import TypeVar

Item = TypeVar("Item")
Key = tuple[Hashable, ...]  # None for what is not said

MOST_TRIED = 100  # groups whose keys agree: of one size, patient and study there are not more kinds of images


class Agreeing:
    """Which of many keys agree with another: each field is equal, or one of both says nothing."""

    def __init__(self) -> None:
        self._keys: dict[tuple[bool, ...], list[tuple[int, Key]]] = {}  # by which fields they have
        # By those, and by which of them are compared: the numbers of the keys with these values.
        self._tables: dict[tuple[tuple[bool, ...], tuple[bool, ...]], dict[Key, list[int]]] = {}
        self._count = 0

    def add(self, key: Key) -> None:
        """Keys are numbered as they come, from 0."""
        has = _said(key)
        self._keys.setdefault(has, []).append((self._count, key))
        for (of, compared), table in self._tables.items():
            if of == has:
                table.setdefault(tuple(compress(key, compared)), []).append(self._count)
        self._count += 1

    def with_key(self, key: Key) -> Iterator[int]:
        """The numbers of the keys that agree, in order, no more than `MOST_TRIED`."""
        has = _said(key)
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


def _said(key: Key) -> tuple[bool, ...]:
    return tuple(field is not None for field in key)


def grouped(items: Sequence[Item], key: Callable[[Item], Key], same: Callable[[Item, Item], bool]) -> list[list[Item]]:
    """Each item in the first group whose first item is the same; those whose keys do not agree are not the same."""
    groups: list[list[Item]] = []
    keys = Agreeing()
    for item in items:
        of_item = key(item)
        number = next((n for n in keys.with_key(of_item) if same(groups[n][0], item)), None)
        if number is None:
            keys.add(of_item)
            groups.append([item])
        else:
            groups[number].append(item)
    return groups
