"""Evaluation: protocols with a name and a version, the rows they give, the energy landscape, and samples."""
