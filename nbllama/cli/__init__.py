"""The command-line programs, with their screens and error messages; quick to import."""
