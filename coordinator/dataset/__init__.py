"""A host's data sets, made into shards once: `potluck data prepare`.

sources           `[[data]]` of run.toml as a list of files, here or elsewhere
chunks            each file in stretches of some MB that are prepared on their own
compressed        .gz and .zst, unpacked while they are read
columns           the same of Parquet files and folders that the library `datasets` saved
plain_tokenizer   the model's tokenizer without the libraries that it came with
tokenize          one chunk as sequences of tokens
kept_out          the records that nobody trains on
findings          what was counted and found bad, in one chunk and in all
chunk_files       what of a chunk lies on disk
workers           one process for each core
prepare           all of it, from where it stopped
screen            what the host sees of it
"""
