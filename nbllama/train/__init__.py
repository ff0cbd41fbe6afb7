"""Training: a single step (`trainer`), the modules that it uses, and a whole run (`run`)."""
