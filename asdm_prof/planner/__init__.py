"""The best plan under a budget: choices, integer programme, frontier, reasons, validation."""
