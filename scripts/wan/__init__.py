"""What the table `scripts/bench wan` is made of: arms, lines, peers of each sort, the race and the report."""
