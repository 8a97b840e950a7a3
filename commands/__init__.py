"""The verbs of the command line, a module for each of the three people; `potluck` puts them together.

No module here imports anything heavy before its verb is called.
"""
