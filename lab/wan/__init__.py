"""A small internet on one machine: `lab.wan.lab` is what is used, and shows how."""
