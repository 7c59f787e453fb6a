"""Captioned pictures: data sets, their order, their encoding and the cache of it."""
