"""Fill an empty Keystone, and print what is in it as shell assignments.

keystone.py DIR ADMIN_PASSWORD < DIR/servers   (run by scripts/lab)

- The catalog has Swift (object-store) in RegionOne (public, internal) and in
  RegionTwo (public, by the name localhost). There is no admin endpoint.
- Project `lab` of the domain Default: `tester` is a member of it, `reader` may
  only read it.
- Project `lab` of the domain `Other`, with a member of its own who is named
  `tester` too and has another password.
- Project `service`, with the user `swift` who checks tokens.
- An application credential of tester's in `lab`.
"""
import json
import shlex
import sys
import urllib.request

HOST = "127.0.0.1"


class Keystone:
    """Requests to Keystone, with a token once there is one."""

    def __init__(self, url):
        self.url = url
        self.token = None

    def send(self, method, path, body=None):
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["X-Auth-Token"] = self.token
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as reply:
            return reply.headers, json.loads(reply.read() or "null")

    def log_in(self, user, password, project):
        domain = {"id": "default"}
        identity = {"methods": ["password"],
                    "password": {"user": {"name": user, "domain": domain, "password": password}}}
        scope = {"project": {"name": project, "domain": domain}}
        body = {"auth": {"identity": identity, "scope": scope}}
        headers, _ = self.send("POST", "/auth/tokens", body)
        self.token = headers["X-Subject-Token"]

    def make(self, kind, **values):
        """Makes a `user`, a `project`, ... and gives its id."""
        return self.send("POST", f"/{kind}s", {kind: values})[1][kind]["id"]

    def role(self, name):
        return self.send("GET", f"/roles?name={name}")[1]["roles"][0]["id"]

    def grant(self, role, user, project):
        self.send("PUT", f"/projects/{project}/users/{user}/roles/{self.role(role)}")


def main(directory, admin_password):
    del directory
    ports = dict(line.split() for line in sys.stdin)
    url = f"http://{HOST}:{ports['keystone']}/v3"
    admin = Keystone(url)
    admin.log_in("admin", admin_password, "admin")

    service = admin.make("service", type="object-store", name="swift")
    for region, interface, host in (
        ("RegionOne", "public", HOST),
        ("RegionOne", "internal", HOST),
        ("RegionTwo", "public", "localhost"),
    ):
        if not any(known["id"] == region for known in admin.send("GET", "/regions")[1]["regions"]):
            admin.make("region", id=region)
        admin.make("endpoint", service_id=service, region_id=region, interface=interface,
                   url=f"http://{host}:{ports['proxy']}/v1/KEY_$(project_id)s")

    def user(name, password, domain="default"):
        return admin.make("user", name=name, password=password, domain_id=domain)

    services = admin.make("project", name="service", domain_id="default")
    admin.grant("admin", user("swift", "swift"), services)

    other = admin.make("domain", name="Other")
    other_lab = admin.make("project", name="lab", domain_id=other)
    admin.grant("member", user("tester", "testing-other", other), other_lab)

    lab = admin.make("project", name="lab", domain_id="default")
    tester = user("tester", "testing-keystone")
    admin.grant("member", tester, lab)
    admin.grant("reader", user("reader", "reading-keystone"), lab)

    owner = Keystone(url)
    owner.log_in("tester", "testing-keystone", "lab")
    credential = owner.send(
        "POST", f"/users/{tester}/application_credentials",
        {"application_credential": {"name": "lab-credential"}},
    )[1]["application_credential"]

    for name, value in (
        ("URL", url),
        ("USER", "tester"),
        ("USER_ID", tester),
        ("KEY", "testing-keystone"),
        ("PROJECT", "lab"),
        ("PROJECT_ID", lab),
        ("OTHER_DOMAIN", "Other"),
        ("OTHER_DOMAIN_ID", other),
        ("OTHER_KEY", "testing-other"),
        ("READER", "reader"),
        ("READER_KEY", "reading-keystone"),
        ("SERVICE_ID", service),
        ("CREDENTIAL_ID", credential["id"]),
        ("CREDENTIAL_NAME", credential["name"]),
        ("CREDENTIAL_SECRET", credential["secret"]),
    ):
        print(f"export SWIFTNBD_LAB_KEYSTONE_{name}={shlex.quote(value)}")


main(*sys.argv[1:])
