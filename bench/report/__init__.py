"""`python -m bench.report OUT_DIR`: quire and its peers on the same work in the same hour, as Markdown, JSON and SVG."""
