"""The page about a run: one file with its style, its script and its data in it.

The parts lie next to this module as files of their own. A page needs no network, and its policy
(Content-Security-Policy) allows no script and no style but its own; what comes from a run is data,
never markup.
"""
