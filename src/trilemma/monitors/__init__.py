"""Monitors turn what a step saw into alarms; a remedy is data that the loop carries out."""
