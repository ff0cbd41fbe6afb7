"""The foundation of all kernels: compiler options, the kernel cache, vector code, and threads."""
