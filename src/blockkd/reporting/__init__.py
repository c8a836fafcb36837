"""Runs → one HTML page that opens from disk, and its figures as PNG and SVG. One file, one part of the page."""
