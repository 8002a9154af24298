"""Reports: self-contained HTML pages about one run or several, with light and dark figures."""
