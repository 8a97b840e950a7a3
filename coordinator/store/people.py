"""Who was admitted, who is banned, and whom the coordinator named to begin."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.store.rows import BanRow, BeginnersRow, EpochRow, InviteRow, MemberRow, NewcomerRow


class MemberTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def renewed(self, peer_id: str) -> float | None:
        """When a member was last given a certificate, Unix seconds; None: it never was."""
        return self._session.scalars(select(MemberRow.renewed).where(MemberRow.peer_id == peer_id)).first()

    def ending(self, text: str) -> list[str]:
        """The members whose peer id ends so; no more than two."""
        wanted = select(MemberRow.peer_id).where(MemberRow.peer_id.endswith(text, autoescape=True)).limit(2)
        return list(self._session.scalars(wanted))

    def all(self) -> Sequence[MemberRow]:
        """Everyone that was ever admitted, who came first first."""
        return self._session.scalars(select(MemberRow).order_by(MemberRow.enrolled)).all()

    def count_since(self, time: float) -> int:
        """How many were given a certificate at this time or later."""
        return self._session.scalar(select(func.count()).where(MemberRow.renewed >= time)) or 0

    def renew(self, peer_id: str, time: float) -> None:
        """Note a certificate that is given now; whoever is not known becomes a member."""
        row = self._session.get(MemberRow, peer_id)
        if row is None:
            self._session.add(MemberRow(peer_id=peer_id, enrolled=time, renewed=time))
        else:
            row.renewed = time


class BanTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def peers(self) -> frozenset[str]:
        """Who is banned now."""
        return frozenset(self.leaves())

    def leaves(self) -> dict[str, int]:
        """Peer id -> the leaf of its ban, of whoever is banned now."""
        found: dict[str, int] = {}
        for row in self._session.scalars(select(BanRow).order_by(BanRow.leaf)):
            if row.begins:
                found[row.peer_id] = row.leaf
            else:
                found.pop(row.peer_id, None)
        return found

    def newest(self) -> int:
        """The leaf of the newest ban or end of one; 0: there was none."""
        return self._session.scalar(select(func.max(BanRow.leaf))) or 0

    def add(self, peer_id: str, leaf: int, *, begins: bool) -> None:
        """Note a ban, or the end of one."""
        self._session.add(BanRow(leaf=leaf, peer_id=peer_id, begins=begins))
        self._session.flush()


class InviteTable:
    """Invites of one's own, and who came by them or asks to be let in."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, digest: str, note: str, most: int, ends: float) -> None:
        self._session.add(InviteRow(digest=digest, note=note, most=most, uses=0, ends=ends, revoked=False))

    def find(self, digest: str) -> InviteRow | None:
        return self._session.get(InviteRow, digest)

    def noted(self, note: str) -> InviteRow | None:
        """The one with this note."""
        return self._session.scalars(select(InviteRow).where(InviteRow.note == note)).first()

    def all(self) -> Sequence[InviteRow]:
        """Those that end last first."""
        return self._session.scalars(select(InviteRow).order_by(InviteRow.ends.desc())).all()

    def note_use(self, peer_id: str, invite: InviteRow) -> None:
        """Note by which invite a newcomer came."""
        self.newcomer(peer_id, 0.0).invite = invite.digest

    def of(self, peer_id: str) -> InviteRow | None:
        """The invite that a member came by, if it is one of its own."""
        row = self._session.get(NewcomerRow, peer_id)
        return self.find(row.invite) if row is not None and row.invite is not None else None

    def newcomer(self, peer_id: str, time: float) -> NewcomerRow:
        """What is known of somebody that asks to be let in."""
        row = self._session.get(NewcomerRow, peer_id)
        if row is None:
            row = NewcomerRow(peer_id=peer_id, invite=None, asked=time, approved=False)
            self._session.add(row)
            self._session.flush()
        return row

    def is_approved(self, peer_id: str) -> bool:
        """Whether the host has said yes to it."""
        row = self._session.get(NewcomerRow, peer_id)
        return row is not None and row.approved

    def asking(self, most: int) -> Sequence[NewcomerRow]:
        """Those that wait for the host's word, who asked last first."""
        wanted = select(NewcomerRow).where(NewcomerRow.approved.is_(False), NewcomerRow.asked > 0)
        members = select(MemberRow.peer_id)
        found = wanted.where(NewcomerRow.peer_id.not_in(members)).order_by(NewcomerRow.asked.desc()).limit(most)
        return self._session.scalars(found).all()


class BeginnersTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def word(self) -> bytes:
        """The signed word on who begins; empty while nobody was named."""
        return self._session.scalars(select(BeginnersRow.word)).first() or b""

    def name(self, run: str, word: bytes) -> None:
        """Keep the word, which is never another one."""
        self._session.add(BeginnersRow(run=run, word=word))

    def newest_epoch(self) -> bytes:
        """The signed word of the newest epoch; empty while there is none."""
        newest = select(EpochRow.word).order_by(EpochRow.number.desc()).limit(1)
        return self._session.scalars(newest).first() or b""

    def begin_epoch(self, number: int, word: bytes) -> None:
        """Keep a word, which is never another one."""
        self._session.add(EpochRow(number=number, word=word))
