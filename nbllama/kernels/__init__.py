"""Code shared by all kernels: compiler options, the kernel cache, vector code, and threads."""
