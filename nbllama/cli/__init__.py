"""The command-line programs, their screens and error lines. Importing this package is fast."""
