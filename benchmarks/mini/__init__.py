"""How the mini that ships was trained, evaluated and put into the package."""
