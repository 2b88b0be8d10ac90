import pytest

from shardload.cli.demo_repo import write_demo_repo


@pytest.fixture(scope="session")
def small_repo(tmp_path_factory):
    return write_demo_repo(tmp_path_factory.mktemp("demo") / "repo")
