"""Training: single steps (`trainer`), the modules that a step uses, and complete runs (`run`)."""
