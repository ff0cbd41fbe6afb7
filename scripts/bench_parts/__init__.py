"""The measurements of scripts/bench, a module each; `report` makes the pages of their results."""
