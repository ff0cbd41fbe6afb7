"""Training: one step (`trainer`), its helpers, and a whole run (`run`)."""
