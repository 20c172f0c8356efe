"""One file per model family: config.json into a spec, checkpoint names into ours. models/registry.py says what a family must have."""
