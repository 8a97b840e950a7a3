"""Data of any size: sources as shards of tokens, prepared once by the host, fetched as members' draws need them.

shard         one file of token sequences: format, writing, reading
shard_folder  all shards of a run in one folder, as its host has them
draws         which sequences are whose
sharded       what a trainer sees of it
"""
