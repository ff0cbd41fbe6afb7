"""The operating system: files, memory, cores, signals and exit codes."""
