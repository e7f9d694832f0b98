"""Gossamer within other libraries."""
