"""Pages and tables about one run or several: self-contained HTML, with light and dark figures."""
