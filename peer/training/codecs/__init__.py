"""How an update is written for the wire and read again, the same bits on every machine."""
