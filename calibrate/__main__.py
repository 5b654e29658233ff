from calibrate.commands import app

app(prog_name="python -m calibrate")
