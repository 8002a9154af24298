"""Evaluation: named and versioned protocols, their result rows, the lint, the energy landscape, samples and export."""
