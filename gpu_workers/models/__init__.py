"""Models are data: a family file reads config.json into a DecoderSpec, one decoder computes what the spec says."""
