"""The foundation of all kernels: compiler options, kernel cache, vector code, threads and cores."""
