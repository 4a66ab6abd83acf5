"""The driver of NVIDIA's GPUs, and of AMD's where torch is built for ROCm."""
