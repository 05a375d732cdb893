"""What the reports of parity and of quality share: JSON, the table of checks, figures, the page."""
