"""The parts of the HTML report: its sentences, tables, charts, template, style and script."""
