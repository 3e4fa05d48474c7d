"""Where the API server is and who we are: service account and kubeconfig, and words for what is wrong with them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.kube.access import ConfigurationError, Kubeconfig, ServiceAccount, Tls, load, tls_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENVIRON = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """Give the folder of a service account."""
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "ca.crt").write_text("an authority")
    return tmp_path


def test_service_account_says_server_token_and_authority(account: Path) -> None:
    """In a pod the environment names the server and the mounted files the credentials."""
    found = ServiceAccount(account, ENVIRON)
    assert found.server == "https://10.96.0.1:443"
    assert found.authorization() == "Bearer first"
    assert found.tls == Tls(ca_file=str(account / "ca.crt"))
    assert not found.proxy


def test_service_account_puts_ipv6_hosts_in_brackets(account: Path) -> None:
    """An IPv6 service address becomes a valid URL."""
    assert ServiceAccount(account, {**ENVIRON, "KUBERNETES_SERVICE_HOST": "fd00::1"}).server == "https://[fd00::1]:443"


def test_service_account_follows_the_file(account: Path) -> None:
    """Kubelet replaces the token while the program runs; the next request uses the new one."""
    found = ServiceAccount(account, ENVIRON)
    fresh = account / "token.new"
    fresh.write_text("second")
    fresh.rename(account / "token")
    assert found.authorization() == "Bearer second"


def test_service_account_keeps_the_last_token_while_the_file_is_away(
    account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that vanishes, or is empty for a moment, does not take the token away; it is logged once."""
    found = ServiceAccount(account, ENVIRON)
    (account / "token").unlink()
    assert [found.authorization() for _ in range(3)] == ["Bearer first"] * 3
    assert len([r for r in caplog.records if "token" in r.message]) == 1
    (account / "token").write_text("")
    assert found.authorization() == "Bearer first"
    (account / "token").write_text("third")
    assert found.authorization() == "Bearer third"


def test_service_account_renews_only_when_the_token_differs(account: Path) -> None:
    """After a refusal a request is repeated only when there is another token to show."""
    found = ServiceAccount(account, ENVIRON)
    assert not found.renew()
    (account / "token").write_text("second")
    assert found.renew()


@pytest.mark.parametrize("environ", [{}, {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}])
def test_outside_of_a_pod_the_text_says_what_to_give(account: Path, environ: dict[str, str]) -> None:
    """Without the pod's environment the error names the option that helps."""
    with pytest.raises(ConfigurationError, match="--kubeconfig"):
        ServiceAccount(account, environ)


def test_a_pod_without_a_token_is_told_which_file(tmp_path: Path) -> None:
    """A service account that is not mounted is named by its file."""
    with pytest.raises(ConfigurationError, match=f"{tmp_path}/token"):
        ServiceAccount(tmp_path, ENVIRON)


def test_load_chooses_by_the_option(
    monkeypatch: pytest.MonkeyPatch, kubeconfig: Callable[..., str], account: Path
) -> None:
    """A kubeconfig is read when one is given, else the service account."""
    assert load(kubeconfig("http://127.0.0.1:1")).server == "http://127.0.0.1:1"
    monkeypatch.setattr("nri_dranet.kube.access.SERVICE_ACCOUNT", account)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigurationError, match="no pod"):
        load()


def test_the_kubernetes_package_is_not_needed_in_a_pod() -> None:
    """Importing the client does not import the package, which costs more memory than all else of this room."""
    code = "import sys, nri_dranet.kube.client; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({}, ""),
        ({"token": "abc"}, "Bearer abc"),
        ({"username": "me", "password": "secret"}, "Basic bWU6c2VjcmV0"),
    ],
)
def test_kubeconfig_users(kubeconfig: Callable[..., str], user: dict[str, Any], expected: str) -> None:
    """Users with nothing, a token, or name and password give the header that belongs to them."""
    assert Kubeconfig(kubeconfig("https://10.0.0.1:6443/", user)).authorization() == expected


def test_kubeconfig_says_how_the_connection_is_secured(kubeconfig: Callable[..., str], tmp_path: Path) -> None:
    """Authority, certificate, key, server name, verification and proxy are taken over."""
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(name)
    found = Kubeconfig(
        kubeconfig(
            "https://10.0.0.1:6443/",
            {"client-certificate": str(tmp_path / "cert"), "client-key": str(tmp_path / "key")},
            **{"certificate-authority": str(tmp_path / "ca"), "tls-server-name": "kube", "proxy-url": "http://p:3128"},
        )
    )
    assert found.server == "https://10.0.0.1:6443"
    assert found.proxy == "http://p:3128"
    assert found.tls == Tls(
        ca_file=str(tmp_path / "ca"),
        certificate_file=str(tmp_path / "cert"),
        key_file=str(tmp_path / "key"),
        server_name="kube",
    )
    assert not Kubeconfig(kubeconfig("https://h", **{"insecure-skip-tls-verify": True})).tls.verify


def plugin(folder: Path) -> dict[str, Any]:
    """Return a user whose plugin gives a new token at each call."""
    script = folder / "plugin"
    script.write_text(
        f"""#!{sys.executable}
import json, pathlib
count = pathlib.Path({str(folder / "count")!r})
n = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(n))
version = "client.authentication.k8s.io/v1"
print(json.dumps({{"apiVersion": version, "kind": "ExecCredential", "status": {{"token": f"token-{{n}}"}}}}))
"""
    )
    script.chmod(0o755)
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(script),
            "interactiveMode": "Never",
        }
    }


def test_kubeconfig_plugins_are_run_again_to_renew(kubeconfig: Callable[..., str], tmp_path: Path) -> None:
    """A plugin gives the token; after a refusal it is asked for another one."""
    found = Kubeconfig(kubeconfig("https://h", plugin(tmp_path)))
    first = found.authorization()
    assert first.startswith("Bearer token-")
    assert found.renew()
    assert found.authorization() != first


def test_a_kubeconfig_that_vanished_keeps_what_was_read(kubeconfig: Callable[..., str], tmp_path: Path) -> None:
    """Renewing from a file that is gone fails without losing the credentials."""
    found = Kubeconfig(kubeconfig("https://h", {"token": "abc"}))
    (tmp_path / "kubeconfig").unlink()
    assert not found.renew()
    assert found.authorization() == "Bearer abc"


def test_a_missing_kubeconfig_is_named(tmp_path: Path) -> None:
    """The text names the file and says that it is not there."""
    with pytest.raises(ConfigurationError, match=r"/nothing does not exist"):
        Kubeconfig(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{{", "cannot be used"),
        ("", "cannot be used"),
        ("[]", "cannot be used"),
        ("apiVersion: v1", "cannot be used"),
        (json.dumps({"current-context": "x", "contexts": [], "clusters": [], "users": []}), "cannot be used"),
        ("\x00", "cannot be used"),
    ],
)
def test_a_damaged_kubeconfig_is_named(tmp_path: Path, text: str, words: str) -> None:
    """Whatever is wrong inside, the text names the file."""
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=f"{path} {words}"):
        Kubeconfig(str(path))


def test_a_server_without_scheme_is_refused(kubeconfig: Callable[..., str]) -> None:
    """A server must be a URL; the text names the field and the value."""
    with pytest.raises(ConfigurationError, match=r"clusters\[\]\.cluster\.server is '10\.0\.0\.1'"):
        Kubeconfig(kubeconfig("10.0.0.1"))


def test_unusable_certificates_are_named(tmp_path: Path) -> None:
    """A file that is missing or is no certificate is named at the start, not at the first request."""
    bad = tmp_path / "bad.crt"
    bad.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"authority .*bad\.crt"):
        tls_context(Tls(ca_file=str(bad)))
    with pytest.raises(ConfigurationError, match=r"authority .*missing"):
        tls_context(Tls(ca_file=str(tmp_path / "missing")))
    with pytest.raises(ConfigurationError, match=r"bad\.crt and .*missing\.key"):
        tls_context(Tls(verify=False, certificate_file=str(bad), key_file=str(tmp_path / "missing.key")))


def test_without_an_authority_the_systems_certificates_count() -> None:
    """A cluster without its own authority is checked against those of the system."""
    assert tls_context(Tls()).check_hostname
    assert not tls_context(Tls(verify=False)).check_hostname
