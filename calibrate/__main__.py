from calibrate.cli import app

app(prog_name="python -m calibrate")
