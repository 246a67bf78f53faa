"""report.html and plots/: charts says what is drawn, plots draws it as PNG files, page.js in the browser; page and tables are the rest."""

from aer_train.report.page import write_report

__all__ = ["write_report"]
