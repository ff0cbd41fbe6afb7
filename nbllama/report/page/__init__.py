"""The page about a run: one file that contains its style, script and data.

The parts are separate files next to this module. A page needs no network, and its
Content-Security-Policy allows only its own script and style. Text from a run is data, never markup.
"""
