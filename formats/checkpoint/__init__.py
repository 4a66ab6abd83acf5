"""Model files: what a model is, and its weights by name, read from GGUF and safetensors."""
