"""What the commands of `asdm` write: versioned pydantic records, without torch."""
