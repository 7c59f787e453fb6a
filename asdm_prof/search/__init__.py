"""Architecture search: many candidates are trained a little, the better half longer."""
