"""Many candidates, trained a little; the better half longer."""
