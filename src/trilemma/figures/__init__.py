"""Figures in a light and a dark variant; a painter knows metrics and arrays, never a run folder."""
