"""Device functions that several kernels share. Importing a module here imports Triton."""
