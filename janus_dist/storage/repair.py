"""Hints for errors about damaged or missing shards.

Invariant: jobs/prepare.py does not change a folder that has a manifest, so each hint says to delete the manifest.
"""

REMAKE_SHARD = (
    "make this shard again: delete it, its .index.npy and the manifest.json of its folder, then run jobs/prepare.py, "
    "which makes the missing shards and keeps the others"
)
"""Hint for a damaged shard."""
REMAKE_MISSING = (
    "delete the manifest.json of its folder, if it exists, and run jobs/prepare.py, which makes the missing shards and "
    "keeps the others; or point data.root at complete shards"
)
"""Hint for a missing shard, or a manifest that does not match its shards."""
