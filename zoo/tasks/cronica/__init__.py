"""Crónicas: a Spanish match report in one of eight styles from the facts of a football match."""
