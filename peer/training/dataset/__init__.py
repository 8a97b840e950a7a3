"""Data of any size: sources as shards of tokens, prepared once by the host, fetched by members as their draws need them.

shard      one file of token sequences: format, writing, reading
"""
