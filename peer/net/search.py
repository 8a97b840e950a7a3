"""The search: saying where this member is, and looking who else is there, in the DHT and at known addresses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from peer.net.driver import Driver
from peer.net.node import Node
from peer.net.records import members_key, open_record, sign_record
from peer.round import views
from peer.round.events import Woken
from protocol.errors import FormatError, NetworkError, RefusedError, SignatureError
from protocol.keys import PeerIdentity

logger = logging.getLogger(__name__)

SEARCH_INTERVAL_S = 3.0
SEARCH_SELDOM_S = 30.0  # while nobody is missing: who comes later finds this member
RECORD_INTERVAL_S = 15.0
LEARNED_S = 6.0  # until libp2p has looked for this computer's addresses once more
RECONNECT_S = 15.0  # before an address is tried again whose peer was reached and is not heard
MAX_CONTACTS = 4096  # addresses remembered, whoever announces more


class MemberSearch:
    """Looks for the members of a run, for as long as this member takes part."""

    def __init__(self, node: Node, driver: Driver, identity: PeerIdentity, certificate: Callable[[], str]) -> None:
        self._node, self._driver, self._identity, self._certificate = node, driver, identity, certificate
        self._run, self._found_at = driver.state.config.run, 0.0
        self._stored_at = -RECORD_INTERVAL_S
        self._hurry = asyncio.Event()
        self.addresses: dict[str, float] = {}  # address -> when it was last reached, time.monotonic(); < 0: never

    def _alive(self) -> set[str]:
        return {view.peer for view in views.alive(self._driver.state, time.monotonic())}

    async def connect(self, addresses: set[str]) -> None:
        """Make the acquaintance of whoever is at these addresses."""
        now, alive = time.monotonic(), self._alive()
        wanted = {
            address
            for address in addresses
            if address.rpartition("/")[2] not in alive | self._driver.roster.banned
            and now - self.addresses.get(address, -RECONNECT_S) >= RECONNECT_S
        }
        for address in list(wanted)[: max(0, MAX_CONTACTS - len(self.addresses))]:
            self.addresses.setdefault(address, -RECONNECT_S)  # who is not reached is tried again
        reached = await self._node.connect(wanted)
        self._driver.gossip.contacts |= reached
        known = wanted & self.addresses.keys()
        self.addresses |= {address: now for address in known if address.rpartition("/")[2] in reached}

    async def _reconnect(self) -> None:
        """After an outage libp2p may have forgotten where everyone is; the coordinator may be away."""
        if not self._alive():
            await self.connect(set(self.addresses))

    async def reconnect(self) -> None:
        """All that is open may be dead: let go of it, find the others again, and say where this member is now."""
        driver = self._driver
        driver.reducing.stop("this computer slept, or is elsewhere in the network now")
        driver.gossip.forget()
        await self._node.disconnect()
        told = {address for peer in driver.state.views for address in driver.roster.addresses(peer)}
        driver.gossip.contacts |= await self._node.connect(told | set(self.addresses))
        for pause_s in (0.0, LEARNED_S):
            await asyncio.sleep(pause_s)
            driver.post(Woken())
            self._stored_at = -RECORD_INTERVAL_S
            self._hurry.set()
            driver.talk.spawn(driver.gossip.tell_everyone())  # it goes on as long as the streams that it opens

    async def forever(self) -> None:
        """Say where this member is, and look who else is there; never ends."""
        pause_s = SEARCH_INTERVAL_S
        while True:
            try:
                if time.monotonic() - self._stored_at >= RECORD_INTERVAL_S:
                    await self._store_record()
                    self._stored_at = time.monotonic()
                if pause_s < SEARCH_SELDOM_S or time.monotonic() - self._found_at >= SEARCH_SELDOM_S:
                    await self._reconnect()
                    await self._find_members()
                    self._found_at = time.monotonic()
            except (TimeoutError, NetworkError) as error:
                logger.debug("search: %s", error)
            pause_s = SEARCH_INTERVAL_S if self._is_somebody_missing() else min(2 * pause_s, SEARCH_SELDOM_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause_s, RECORD_INTERVAL_S)):
                    await self._hurry.wait()
            if self._hurry.is_set():
                self._hurry.clear()
                pause_s = SEARCH_INTERVAL_S

    def _is_somebody_missing(self) -> bool:
        """Whether there is nobody, or somebody who was here is not heard and has not left."""
        now, state = time.monotonic(), self._driver.state
        heard = [views.is_alive(state, peer, now) for peer, view in state.views.items() if not view.said.leaving]
        return not heard or not all(heard)

    async def _store_record(self) -> None:
        self._driver.addresses = await self._node.addresses()
        value, expires = sign_record(
            self._identity, run=self._run, certificate=self._certificate(), addresses=self._driver.addresses
        )
        await self._node.store_record(members_key(self._run), self._identity.peer_id, value, expires)

    async def _find_members(self) -> None:
        known = self._alive() | {self._identity.peer_id}
        found: set[str] = set()
        for peer_id, value in (await self._node.find_records(members_key(self._run))).items():
            if peer_id in known:
                continue
            try:
                signer, record = open_record(value)
                self._driver.roster.admit(peer_id, record.certificate)
            except (FormatError, SignatureError, RefusedError) as error:
                logger.debug("a member record that is none: %s", error.message)
                continue
            if signer == peer_id and record.run == self._run:
                found |= {address for address in record.addresses if address.endswith(f"/p2p/{peer_id}")}
        if found:
            self._driver.gossip.contacts |= await self._node.connect(found)
