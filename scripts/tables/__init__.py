"""The tables of `scripts/bench`, a module each."""
