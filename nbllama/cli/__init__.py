"""The command line: option tables, error lines, progress display. Imports nothing heavy."""
