"""What a peer keeps on disk. Speaks to nobody."""
