from validate.cli import app

app(prog_name="python -m validate")
