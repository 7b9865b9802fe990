"""Where things are, by the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders.settings import Settings, SettingsError


def test_defaults_stand_below_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_env({})
    assert settings.raw == str(tmp_path / "warehouse/raw")
    assert settings.lake == str(tmp_path / "warehouse/lake.sqlite")
    assert settings.lake_data == str(tmp_path / "warehouse/lake")
    assert settings.kafka == "127.0.0.1:9092"
    monkeypatch.chdir("/")
    assert settings.raw == str(tmp_path / "warehouse/raw")


def test_an_empty_variable_counts_as_unset() -> None:
    empty = dict.fromkeys(
        ["MDP_RAW", "MDP_LAKE", "MDP_LAKE_DATA", "MDP_KAFKA", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"], ""
    )
    assert Settings.from_env(empty) == Settings.from_env({})


@pytest.mark.parametrize(
    ("size", "bytes_"), [("4GB", 4 * 10**9), ("1.5 gib", 3 << 29), ("300 MB", 300 * 10**6), ("1TiB", 1 << 40)]
)
def test_memory_is_a_size(size: str, bytes_: int) -> None:
    assert Settings.from_env({"MDP_MEMORY": size}).memory == bytes_


@pytest.mark.parametrize("size", ["4", "GB", "-1GB", "80%", "4 GB; reset memory_limit"])
def test_memory_that_is_no_size_is_refused(size: str) -> None:
    with pytest.raises(SettingsError, match=r"MDP_MEMORY is .*; give a size such as 4GB"):
        Settings.from_env({"MDP_MEMORY": size})


def test_a_lake_elsewhere_keeps_its_files_beside_it() -> None:
    settings = Settings.from_env({"MDP_LAKE": "/data/a/lake.sqlite"})
    assert settings.lake_data == "/data/a/lake.sqlite.data"
    assert settings.state_dir == Path("/data/a/lake.sqlite.state")
    assert Settings.from_env({"MDP_LAKE": "/data/a/lake.sqlite", "MDP_LAKE_DATA": "s3://b/x/"}).lake_data == "s3://b/x"


def test_a_shared_lake_says_where_its_files_are() -> None:
    with pytest.raises(SettingsError, match="MDP_LAKE_DATA"):
        Settings.from_env({"MDP_LAKE": "postgres:dbname=lake"})


@pytest.mark.parametrize(
    ("catalog", "way_out"),
    [
        ("md:lake", "not supported yet"),
        ("postgres:dbname=d password=x", "PGPASSWORD"),
        ("s3://bucket/lake.sqlite", "MDP_LAKE_DATA"),
    ],
)
def test_a_catalog_that_cannot_be_used_is_refused(catalog: str, way_out: str) -> None:
    with pytest.raises(SettingsError, match=way_out):
        Settings.from_env({"MDP_LAKE": catalog, "MDP_LAKE_DATA": "/d"})


@pytest.mark.parametrize("name", ["MDP_RAW", "MDP_LAKE_DATA"])
def test_keys_in_a_place_are_refused_and_not_shown(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} begins with s3://.*credentials into the AWS variables") as refused:
        Settings.from_env({name: "s3://AKIAXYZ:SECRET@bucket/raw"})
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("place", ["gs://bucket/x", "s3://", "s3:///x", "s3://a b/x", "file:///tmp/x", "a\0b"])
def test_a_place_of_another_kind_is_refused(place: str) -> None:
    with pytest.raises(SettingsError, match="MDP_RAW"):
        Settings.from_env({"MDP_RAW": place})


def test_s3_reads_the_usual_variables_and_shows_no_secret() -> None:
    settings = Settings.from_env(
        {
            "MDP_RAW": "s3://bucket/raw/",
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "canary-secret",
            "AWS_SESSION_TOKEN": "canary-token",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_ENDPOINT_URL": "http://a",
            "AWS_ENDPOINT_URL_S3": "http://b",
        }
    )
    assert settings.raw == "s3://bucket/raw"
    assert (settings.s3.access_key, settings.s3.secret_key) == ("me", "canary-secret")
    assert (settings.s3.region, settings.s3.endpoint) == ("eu-west-1", "http://b")
    assert "canary" not in repr(settings)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("value", ["canary\n", " canary", "canär"])
def test_a_key_that_a_header_cannot_hold_is_refused_and_not_shown(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} holds a space") as caught:
        Settings.from_env({name: value})
    assert value.strip() not in str(caught.value)


@pytest.mark.parametrize(
    "brokers",
    ["broker", "a.example.org:9092,b-1_x:19092", "a:1, b:65535", "[::1]:9092", "SASL_SSL://a:9092", "10.0.0.1:9092"],
)
def test_brokers_are_taken_as_the_clients_take_them(brokers: str) -> None:
    from kafka.cluster import collect_hosts

    assert Settings.from_env({"MDP_KAFKA": brokers}).kafka == brokers
    assert all(host and port for host, port, _ in collect_hosts(brokers))


@pytest.mark.parametrize(
    ("brokers", "wrong"),
    [
        ("localhost:abc", "localhost:abc"),
        ("a:9092,b:", "b:"),
        ("a:9092,", ""),
        ("a:0", "a:0"),
        ("a:65536", "a:65536"),
        ("a:9092;b:9092", "a:9092;b:9092"),
        ("[::1]9092", "[::1]9092"),
        ("http://a:9092/x", "http://a:9092/x"),
    ],
)
def test_what_is_no_broker_is_named(brokers: str, wrong: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"MDP_KAFKA": brokers})
    assert str(caught.value) == f"MDP_KAFKA is {brokers!r}: {wrong!r} is no broker; give host:port,…"


def test_a_password_among_the_brokers_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="MDP_KAFKA_PASSWORD") as caught:
        Settings.from_env({"MDP_KAFKA": "me:canary@a:9092"})
    assert "canary" not in str(caught.value)


def test_kafka_is_spoken_to_in_its_own_words_and_shows_no_secret() -> None:
    env = {"MDP_KAFKA_SECURITY": "sasl_ssl", "MDP_KAFKA_USER": "mdp", "MDP_KAFKA_PASSWORD": "canary"}
    security = Settings.from_env({**env, "MDP_KAFKA_CA": "/ca.pem"}).kafka_security
    assert (security.protocol, security.mechanism, security.user) == ("SASL_SSL", "SCRAM-SHA-512", "mdp")
    assert (security.password, security.ca) == ("canary", "/ca.pem")
    assert "canary" not in repr(Settings.from_env(env))


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"SECURITY": "TLS"}, "MDP_KAFKA_SECURITY is 'TLS'; give one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
        ({"PASSWORD": "canary", "USER": "u"}, "MDP_KAFKA_USER is set, and MDP_KAFKA_SECURITY is PLAINTEXT"),
        ({"PASSWORD": "canary", "SECURITY": "SSL"}, "MDP_KAFKA_PASSWORD is set, and MDP_KAFKA_SECURITY is SSL"),
        ({"CA": "/ca.pem", "SECURITY": "PLAINTEXT"}, "MDP_KAFKA_CA is set"),
        ({"PASSWORD": "canary", "SECURITY": "SASL_SSL"}, "set MDP_KAFKA_USER and MDP_KAFKA_PASSWORD"),
        ({"SECURITY": "SSL", "CERT": "/c.pem"}, "belong together"),
        (
            {"SECURITY": "SASL_SSL", "USER": "u", "PASSWORD": "canary", "SASL_MECHANISM": "GSSAPI"},
            "MDP_KAFKA_SASL_MECHANISM is 'GSSAPI'; give one of PLAIN",
        ),
        ({"CLIENT": "librdkafka"}, "MDP_KAFKA_CLIENT is 'librdkafka'; give kafka-python or confluent"),
    ],
)
def test_how_kafka_is_spoken_to_is_whole_and_nothing_of_it_is_ignored(env: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({f"MDP_KAFKA_{name}": value for name, value in env.items()})
    assert told in str(caught.value)
    assert "canary" not in str(caught.value)
