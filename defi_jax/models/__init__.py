"""One architecture a file, each with its Config and PRESETS."""
