"""The page about a run, a single file that contains its style, script and data.

The parts are separate files next to this module. A page does not require a network, and its
Content-Security-Policy allows only its own script and style. Text from a run is treated as data,
never as markup.
"""
