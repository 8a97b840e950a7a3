"""What a card does with the tensor code, as tables, in one call of at most seven minutes: `scripts/gpu-check`.

course      the sections in their order, each in a process and with a budget of its own
tables      how their rows are shown
given       what a section gets: shapes, models, data, members, and how memory is measured
machine speed memory passes replay agreed transfer     the sections
stand_ins   for what a bare machine lacks and nothing here uses
"""
