"""Masks on weights."""
