"""Training: a single step (`trainer`), the modules it uses, and complete runs (`run`)."""
