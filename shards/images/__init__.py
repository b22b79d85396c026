"""Image files: opening PNG, TIFF, Zarr and others by window, and masks as labels.

May import `segdist.core` and `shards.manifest`, but no other room of `shards`.
"""
