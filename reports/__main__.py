from reports.commands import reports_app

reports_app(prog_name="python -m reports")
