"""Attention over blocks of keys that queries chose at run time: what all ways to compute it on a GPU share."""
