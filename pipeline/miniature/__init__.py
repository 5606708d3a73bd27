"""A world small enough to draw, in the real on-disk formats: a test bed and a demo without weights or downloads.

Its words are in `grammar`, its pictures come from `shapes` and `draw`, `world` lays them out as the real data sets
are laid out, `odinw` has thirteen small sets of their own character, `lvis` one of hundreds of names, `flickr30k` one
of sentences, `hazards` what an open list of addresses throws at a downloader, and `server` the web they are fetched
from.
"""
