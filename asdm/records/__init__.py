"""Versioned records that the commands of `asdm` write; read without torch."""
