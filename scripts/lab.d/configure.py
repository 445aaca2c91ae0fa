"""Write the rings and configuration files of one lab.

configure.py DIR [reachable] < DIR/servers   (lines "NAME PORT"; run by scripts/lab)
With "reachable", the proxy listens on all addresses.
"""
import os
import pwd
import sys

from swift.common.ring import RingBuilder

KINDS = ("account", "container", "object")
HOST = "127.0.0.1"

SWIFT = """\
[swift-hash]
swift_hash_path_suffix = swiftnbd-lab

[storage-policy:0]
name = lab
default = yes
"""

# Servers log to stderr (--verbose), which scripts/lab sends to a file. Swift
# cannot be kept from logging to syslog too, so that goes to a port where
# nobody listens: the server's own, as UDP.
# workers = 0: one process a server.
DEFAULT = """\
[DEFAULT]
bind_ip = {host}
bind_port = {port}
bind_timeout = 2
workers = 0
user = {user}
swift_dir = {dir}/etc
log_udp_host = {host}
log_udp_port = {port}
"""

BACKEND = DEFAULT + """\
devices = {dir}/node{number}
mount_check = false
fallocate_reserve = 0
db_preallocation = off
log_requests = false

[pipeline:main]
pipeline = healthcheck {kind}-server

[filter:healthcheck]
use = egg:swift#healthcheck

[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY = DEFAULT.replace("bind_ip = {host}", "bind_ip = {proxy_host}") + """\

[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging cache \
listing_formats bulk tempauth copy container-quotas account-quotas slo dlo \
proxy-logging proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
# By default requests go on failing for a minute after a node is back.
error_suppression_interval = 2

[filter:cache]
use = egg:swift#memcache
memcache_servers = {host}:{memcached}
error_suppression_interval = 2

[filter:tempauth]
use = egg:swift#tempauth
token_life = 86400
user_test_tester = testing .admin
user_test_reader = reading .reseller_reader
"""

# Beside tempauth: Keystone's tokens are for accounts KEY_<project id>. What
# Keystone says of a token is kept in memcached, for 5 minutes at most.
KEYSTONE_FILTERS = """
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = http://{host}:{keystone}/v3
auth_url = http://{host}:{keystone}/v3
auth_type = password
interface = public
user_domain_id = default
project_domain_id = default
project_name = service
username = swift
password = swift
delay_auth_decision = true
cache = swift.cache
include_service_catalog = false
# Between two attempts it sleeps, and with it the whole proxy: Swift leaves
# time.sleep unpatched. Without Keystone the proxy says 503 at once.
http_request_max_retries = 0

[filter:keystoneauth]
use = egg:swift#keystoneauth
reseller_prefix = KEY
operator_roles = admin, member
project_reader_roles = reader
"""

KEYSTONE = """\
[DEFAULT]
use_stderr = true

[database]
connection = sqlite:///{dir}/keystone/keystone.db

[token]
provider = fernet
expiration = 3600

[fernet_tokens]
key_repository = {dir}/keystone/fernet

[fernet_receipts]
key_repository = {dir}/keystone/fernet

[credential]
key_repository = {dir}/keystone/credential

[identity]
# The least that bcrypt takes.
password_hash_rounds = 4

# As a real one has it: without, each question costs a quarter of a second.
[cache]
enabled = true
backend = oslo_cache.dict
"""

# One process, since sqlite has one writer. The access log goes with the rest.
GUNICORN = """\
bind = "{host}:{keystone}"
wsgi_app = "keystone.wsgi.api:application"
workers = 1
threads = 8
accesslog = "-"
access_log_format = '%(h)s "%(r)s" %(s)s "%(a)s"'
control_socket_disable = True
"""

FILTERS = {
    "catch_errors": "catch_errors",
    "gatekeeper": "gatekeeper",
    "healthcheck": "healthcheck",
    "proxy-logging": "proxy_logging",
    "listing_formats": "listing_formats",
    "bulk": "bulk",
    "copy": "copy",
    "container-quotas": "container_quotas",
    "account-quotas": "account_quotas",
    "slo": "slo",
    "dlo": "dlo",
}


def main(directory, reachable):
    ports = dict(line.split() for line in sys.stdin)
    replicas = sum(name.startswith("object") for name in ports)
    etc = os.path.join(directory, "etc")
    common = {
        "dir": directory,
        "host": HOST,
        "user": pwd.getpwuid(os.geteuid()).pw_name,  # Swift would become "swift"
    }

    def write(name, text):
        with open(os.path.join(etc, name), "w") as file:
            file.write(text)

    os.makedirs(etc, exist_ok=True)
    write("swift.conf", SWIFT)
    filters = ""
    for name, egg in FILTERS.items():
        filters += f"\n[filter:{name}]\nuse = egg:swift#{egg}\n"
    if "keystone" in ports:
        filters += KEYSTONE_FILTERS.format(keystone=ports["keystone"], **common)
        write("keystone.conf", KEYSTONE.format(**common))
        write("gunicorn.py", GUNICORN.format(keystone=ports["keystone"], **common))
    for name in filter(lambda name: name.startswith("proxy"), ports):
        proxy = PROXY.format(
            port=ports[name], memcached=ports["memcached"],
            proxy_host="0.0.0.0" if reachable else HOST, **common)
        if "keystone" in ports:
            proxy = proxy.replace(" tempauth ", " authtoken keystoneauth tempauth ")
        write(name + ".conf", proxy + filters)

    for kind in KINDS:
        # 16 partitions; one device a replica, so there are no handoffs.
        builder = RingBuilder(4, replicas, 0)
        for number in range(1, replicas + 1):
            name = f"{kind}{number}"
            port = int(ports[name])
            device = f"d{number}"
            write(name + ".conf", BACKEND.format(port=port, number=number, kind=kind, **common))
            os.makedirs(os.path.join(directory, f"node{number}", device), exist_ok=True)
            builder.add_dev({
                "region": 1, "zone": number, "weight": 1.0, "device": device,
                "ip": HOST, "port": port, "replication_ip": HOST, "replication_port": port,
            })
        builder.rebalance(seed="swiftnbd")
        builder.get_ring().save(os.path.join(etc, kind + ".ring.gz"))


main(sys.argv[1], sys.argv[2:] == ["reachable"])
