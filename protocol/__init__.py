"""What all three sides must agree on: schemas, digests, keys, certificates, ledger proofs, verification.

Imports neither `peer` nor `coordinator`, nor torch, nor hivemind: a verifier installs in seconds.
"""

__version__ = "0.1.0"
