from reports.commands.reports import app

app(prog_name="python -m reports")
