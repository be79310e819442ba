"""Views of a report: Markdown, HTML with inline figures. The JSON is the truth, these only show it."""
