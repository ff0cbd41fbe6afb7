"""The operating system below the programs: files, memory, cores, and the frame of a program."""
