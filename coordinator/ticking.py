"""What a host does every second: it looks at reports that wait, who is to decide, and what its owner has ordered."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from coordinator.admission import Admission
from coordinator.beginning import Beginning
from coordinator.board import Board
from coordinator.orders import Orders
from coordinator.reports import Reports
from coordinator.roster import Announcements
from coordinator.standstill import GoingOn
from coordinator.store.database import StoreError
from protocol.disk import write_file
from protocol.errors import PotluckError
from protocol.invite import Invite

logger = logging.getLogger(__name__)

TICK_S = 1.0


class Ticking:
    """Looks after the parts of one host, and keeps status.json up to date."""

    def __init__(
        self,
        reports: Reports,
        board: Board,
        beginning: Beginning,
        admission: Admission,
        roster: Announcements,
        invite: Invite,
    ) -> None:
        self._reports, self._board, self._beginning = reports, board, beginning
        self._admission, self._roster, self._invite = admission, roster, invite

    def go(self, folder: Path, closing: threading.Event) -> None:
        """Until `closing` is set; `folder`: the run's."""
        reports, board, beginning, roster = self._reports, self._board, self._beginning, self._roster
        going_on = GoingOn(folder, beginning.begin_epoch, time.monotonic())

        def go_on() -> dict[str, object]:
            now, epoch = time.monotonic(), beginning.next_epoch
            return going_on.go_on(reports.tip(), roster.seen(), self._invite.run, epoch, now)

        orders = Orders(folder, {"go-on": go_on, **self._admission.orders(self._invite)})
        while True:
            try:
                reports.settle()
                now, seen = time.monotonic(), roster.seen()
                beginning.look(board.round(), seen, now)
                going_on.look(reports.tip(), seen, now)
                orders.look()
                write_file(folder / "status.json", board.status().to_bytes())
            except (PotluckError, StoreError) as error:
                logger.warning("status.json is out of date: %s", error)
            if closing.wait(TICK_S):
                return
