"""The command-line programs and their screens. Importing this package is fast."""
