"""The one boundary to the kernels: operators that a compiler, a profiler and autograd understand."""
