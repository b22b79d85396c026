"""From labeled images to a shard set: pairs, splits, patches, tars, manifest.

May import `segdist.core`, `shards.images` and the modules next to them; not `shards.read`.
"""
