"""The built-in demo set: films of one photographed face, rendered from a plan."""
