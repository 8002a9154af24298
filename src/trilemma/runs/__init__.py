"""Run folders: this package alone defines their layout."""
