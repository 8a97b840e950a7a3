"""Places are counted by sender: each has a few, and whoever has most gives way to who has less."""

from __future__ import annotations

import pytest

from coordinator.places import Places
from protocol.errors import NetworkError


def test_one_sender_has_a_few_places_and_gets_them_back() -> None:
    places = Places(total=10, each=2)
    with places.taken("one"), places.taken("one"), pytest.raises(NetworkError, match="2 such calls"):
        places.take("one", list)
    with places.taken("one"), places.taken("one"), places.taken("another"):
        pass


def test_senders_with_many_give_way_until_all_have_alike() -> None:
    """Two senders hold all six places; four more get one each, and nobody is left with none."""
    places, ended = Places(total=6, each=4), []
    held = [places.take(sender, lambda sender=sender: ended.append(sender)) for sender in ("one", "two") * 3]
    for sender in ("three", "four", "five", "six"):
        held.append(places.take(sender, lambda: pytest.fail("who has one place keeps it")))
    assert sorted(ended) == ["one", "one", "two", "two"]
    for sender in ("seven", "one"):
        with pytest.raises(NetworkError, match="busy"):
            places.take(sender, list)
    for place in held:
        places.give(place)
        places.give(place)
    assert all(places.take(sender, list) for sender in ("seven", "eight", "nine", "ten", "eleven", "twelve"))
