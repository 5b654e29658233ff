"""Passwords in URIs, against what the libraries that read such URIs take for the password."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from sqlalchemy.engine import make_url

from validate.passwords import is_without_password, without_passwords


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://bob:S3cret@db/mlflow",
        "postgresql+psycopg2://bob:S3cret@db:5432/mlflow?sslmode=require",
        "mysql+pymysql://bob:a/S3cret?b#c@db/mlflow",
        "mysql://:S3cret@db/mlflow",
        "mssql+pyodbc://bob:S3:cret@db/mlflow",
    ],
)
def test_what_sqlalchemy_takes_for_the_password_is_taken_out(uri: str) -> None:
    url = make_url(uri)
    assert url.password is not None
    assert without_passwords(uri) == uri.replace(url.password, "***")
    assert make_url(without_passwords(uri)) == url.set(password="***")
    assert is_without_password(without_passwords(uri)) and not is_without_password(uri)


@pytest.mark.parametrize("uri", ["https://bob:S3cret@host:5000/x", "https://bob:S3@cret@host/x?y=1@2"])
def test_what_a_web_client_takes_for_the_password_is_taken_out(uri: str) -> None:
    password = urlsplit(uri).password
    assert password is not None
    assert without_passwords(uri) == uri.replace(password, "***")


def test_a_password_among_the_options_is_taken_out() -> None:
    uri = "postgresql://db/mlflow?user=bob&password=S3cret&sslmode=require"
    assert make_url(uri).query["password"] == "S3cret"
    assert without_passwords(uri) == uri.replace("S3cret", "***")
    assert is_without_password(without_passwords(uri))


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///mlflow.db",
        "http://localhost:5000",
        "https://bob@host/x",
        "databricks://profile",
        "a@b: c@d",
        "",
        "python -m calibrate run c.yaml --set tracking.uri=http://host:5000 --set name=me@here",
    ],
)
def test_what_has_no_password_stays_as_it_is(text: str) -> None:
    assert without_passwords(text) == text
    assert not is_without_password(text)


def test_it_reaches_into_data_and_changes_nothing_else() -> None:
    given = {"a": [1, None, {"b": "see mysql://u:p@h and mysql://v:q@i"}], "c": 2.5, "d": True}
    found = {"a": [1, None, {"b": "see mysql://u:***@h and mysql://v:***@i"}], "c": 2.5, "d": True}
    assert without_passwords(given) == found
    assert without_passwords(found) == found
