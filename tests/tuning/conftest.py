"""A real PostgreSQL server for the tests: the installed one, else Debian's package in the user's cache folder.

It is started when the first test of a session asks for it, on a Unix socket in a temporary folder, and it ends with
the session, however that ends. Where there is no server and no way to get one, the tests fail and say so.
"""

import contextlib
import functools
import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import psycopg
import pytest
from filelock import FileLock
from platformdirs import user_cache_path

_NOT_NEEDED = ("libc6", "libllvm", "libperl", "libjson-perl", "libcommon-sense-perl", "libtypes-serialiser-perl")
_UNTIL_TOLD = '"$@" & read -r _; kill -INT $!; wait; rm -rf "$FOLDER"'


@pytest.fixture(scope="session")
def postgres_server():
    """Address of a running server, to be completed with the name of a database."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(server(find_server()))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            pytest.fail(f"no PostgreSQL server to test with: {error}", pytrace=False)
        yield f"postgresql://postgres@/{{}}?host={folder}"


@pytest.fixture
def postgres(postgres_server):
    """Address of a fresh database, as a user gives it to `storage`."""
    name = f"test_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres_server.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres_server.format(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def server(binaries):
    """The folder of a running server's socket. Trusts everybody but the role `guarded`."""
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    folder = Path(tempfile.mkdtemp(prefix="luthier-postgres-"))
    as_user = unprivileged(folder)
    env = {**os.environ, "FOLDER": str(folder), "LC_ALL": "C", **libraries(binaries)}
    started = None
    try:
        options = ["--username=postgres", "--auth=trust", "--no-locale", "--encoding=UTF8", "--no-sync"]
        run([binaries / "initdb", "--pgdata", folder / "data", *options], env=env, cwd=folder, **as_user)
        rules = folder / "data" / "pg_hba.conf"
        rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
        settings = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off", "jit": "off"}
        command = [binaries / "postgres", "-D", folder / "data"]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("w") as log:
            started = subprocess.Popen(
                ["sh", "-c", _UNTIL_TOLD, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=env,
                cwd="/",
                **as_user,
            )
        wait_until_ready(folder, started)
        yield folder
    finally:
        if started is not None:
            started.stdin.close()
            started.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_ready(folder, started):
    """Until a client gets in."""
    until = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(f"postgresql://postgres@/postgres?host={folder}").close()
            return
        except psycopg.OperationalError as error:
            if time.monotonic() > until or started.poll() is not None:
                raise RuntimeError(f"it does not start: {error} {(folder / 'log').read_text()[-500:]}") from None
            time.sleep(0.05)


def unprivileged(folder):
    """For root, whom PostgreSQL refuses: the user to run as, who is given the folder."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(LookupError):
            shutil.chown(folder, name)
            return {"user": name, "extra_groups": []}
    raise RuntimeError("this is root, which PostgreSQL refuses, and there is no user postgres or nobody")


def libraries(binaries):
    """Where a server from the cache finds its libraries; a server of the system finds them there anyway."""
    system = binaries.parents[2]
    folders = [folder for lib in (system, system.parent.parent / "lib") for folder in lib.glob("*-linux-gnu*")]
    return {"LD_LIBRARY_PATH": os.pathsep.join(map(str, folders))} if folders else {}


def find_server():
    """The folder of `postgres` and `initdb`: on the path, where Debian puts it, in the cache, or fetched now."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += installed(Path("/"))
    for place in places:
        if (place / "postgres").exists():
            return place
    root = Path("/var/cache") if os.geteuid() == 0 else user_cache_path()
    cache = root / "luthier" / "postgresql"  # the server's user may not enter root's home
    cache.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_suffix(".lock")):
        if not installed(cache):
            fetch(cache)
    return installed(cache)[0]


def installed(root):
    """Folders of servers below a root, the newest first."""
    return sorted((root / "usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))


def fetch(cache):
    """Unpack Debian's package, with those of its libraries that are missing, into a folder; apt checks the hashes."""
    if shutil.which("apt-get") is None:
        raise RuntimeError("initdb is not on the path, and without apt-get it cannot be fetched: install PostgreSQL")
    state = cache.with_suffix(".apt")
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    own = ["-o", f"Dir::State::Lists={state}/lists", "-o", f"Dir::Cache={state}", "-o", "Debug::NoLocking=1"]
    own += ["-o", "APT::Sandbox::User="]

    def apt(tool, *words):
        done = subprocess.run([tool, "-q", *own, *words], capture_output=True, text=True, cwd=state, timeout=240)
        if done.returncode:
            raise RuntimeError(f"{tool} {' '.join(words)}: {done.stderr.strip()[-500:]}")
        return done.stdout

    apt("apt-get", "update")
    name = re.search(r"Depends: (postgresql-\d+)", apt("apt-cache", "depends", "postgresql"))[1]
    planned = re.findall(r"^Inst (\S+)", apt("apt-get", "-s", "install", "--no-install-recommends", name), re.M)
    wanted = [package for package in planned if package.startswith("lib") and not package.startswith(_NOT_NEEDED)]
    apt("apt-get", "download", *dict.fromkeys([name, *wanted]))
    unpacked = Path(tempfile.mkdtemp(dir=cache.parent))
    for package in state.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, unpacked], check=True, capture_output=True)
    unpacked.chmod(0o755)
    unpacked.rename(cache)
    shutil.rmtree(state)
