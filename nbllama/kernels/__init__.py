"""What all kernels are built on: compiler options, the kernel cache, vector code, and threads."""
