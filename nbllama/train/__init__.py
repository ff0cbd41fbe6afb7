"""Training: one step (`trainer`), what surrounds it, and a whole run (`run`)."""
