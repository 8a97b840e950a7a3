"""What a person reads, in both languages, and what a script reads instead."""
