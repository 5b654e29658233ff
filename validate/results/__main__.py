"""Prints the JSON Schema of ``results.json``."""

import json

from validate.results.run import Results

print(json.dumps(Results.model_json_schema(mode="serialization"), indent=1))
