"""Reports: figures in light and dark, and self-contained pages about one run or several."""
