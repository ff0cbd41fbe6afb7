"""The programs of the command line, their screens and error lines. Importing it is fast."""
