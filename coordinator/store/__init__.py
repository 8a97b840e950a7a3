"""The coordinator's database: every query of it stands here, under a name; nobody outside has a session.

    store = Store(folder / "ledger.db")
    with store.reading() as tables:
        newest = tables.rounds.newest()
    with store.writing() as tables:             one transaction; `coordinator.ledger` opens those that append to the log
        tables.members.enroll(peer_id, now)

`database` opens and closes; `rows` says what is stored; the others ask and answer, one family of tables each. They
decide nothing: the rules stand where they are applied, in `reports`, `waiting`, `admission`, `publisher`.
"""
