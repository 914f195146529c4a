"""Draws: fixed numbers for problems that are made, of no seed and no library's generator."""

import hashlib


def draw(name: str, *below: int) -> list[int]:
    """A number from 0 up to each of at most eight bounds, excluded; a function of `name` alone."""
    digest = hashlib.sha256(name.encode()).digest()
    words = (digest[i : i + 4] for i in range(0, 4 * len(below), 4))
    return [int.from_bytes(word) % bound for word, bound in zip(words, below, strict=True)]


def splits_of(keys: list[str], test: int, validation: int) -> dict[str, list[int]]:
    """Places of the keys by split, in an order that has nothing to do with them; of keys that occur
    again only the first is taken, so that the splits have none in common."""
    first = {key: place for place, key in reversed([*enumerate(keys)])}
    order = sorted(first, key=lambda key: hashlib.sha256(key.encode()).digest())
    places, end = [first[key] for key in order], test + validation
    return {"train": places[end:], "validation": places[test:end], "test": places[:test]}
