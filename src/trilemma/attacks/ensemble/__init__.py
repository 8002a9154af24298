"""The machinery of AutoAttack."""
