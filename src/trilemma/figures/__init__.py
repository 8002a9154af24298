"""Figures in a light and a dark variant, drawn from metrics and arrays; nothing here reads a run folder."""
