"""The command-line programs, with their screens and error messages; fast to import."""
