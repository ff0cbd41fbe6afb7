"""What every kernel is made with: the compiler options, vector code, threads and their cores."""
