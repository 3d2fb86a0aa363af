"""How damaged or missing shards are made again, as hints of errors say it.

Invariant: jobs/prepare.py leaves a folder with a manifest alone, so each of these hints names the manifest.
"""

REMAKE_SHARD = (
    "make this shard again: delete it, its .index.npy and the manifest.json of its folder, then run jobs/prepare.py, "
    "which makes what is missing and keeps the rest"
)
REMAKE_MISSING = (
    "delete the manifest.json of its folder, if it is there, and run jobs/prepare.py, which makes what is missing and "
    "keeps the rest; or point data.root at whole shards"
)
