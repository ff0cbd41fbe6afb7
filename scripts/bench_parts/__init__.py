"""The measurements of scripts/bench, one module each; `report` writes the page of results."""
