"""Makes what the laboratory's cloud starts with.

bootstrap.py identity    projects, users, roles, endpoints; Keystone is enough
bootstrap.py resources   the seed's flavors, a network, an image
"""
import sys

import openstack

ADDRESS = "198.18.0.2"
PASSWORD = "lab"
SERVICES = [  # of service, type, URL
    ("nova", "compute", "http://%s:8774/v2.1" % ADDRESS),
    ("placement", "placement", "http://%s:8778" % ADDRESS),
    ("glance", "image", "http://%s:9292" % ADDRESS),
    ("neutron", "network", "http://%s:9696" % ADDRESS),
]
# The seed's, as its page lists them: name, vCPUs, memory in MiB, disk in GiB.
GPU_FLAVORS = [
    ("gpu_tiny", 4, 2048, 20), ("gpu_medium", 4, 8192, 50), ("gpu_large", 4, 12288, 60),
    ("gpu_xlarge", 8, 16384, 60), ("gpu_2xlarge", 8, 32768, 60), ("gpu_4xlarge", 8, 65536, 60),
]
CPU_FLAVORS = [("ci_medium", 4, 8192, 60), ("ci_large", 4, 12288, 60)]
# For many servers at once, and for real ones in software emulation.
LAB_FLAVORS = [("lab.nano", 1, 128, 1), ("lab.small", 1, 512, 2)]


def identity(cloud):
    domain = "default"
    roles = {r.name: r for r in cloud.identity.roles()}
    if "service" not in roles:
        roles["service"] = cloud.identity.create_role(name="service")
    service = cloud.identity.create_project(name="service", domain_id=domain)
    lab = cloud.identity.create_project(name="lab", domain_id=domain)

    def user(name, project, granted):
        u = cloud.identity.create_user(name=name, password=PASSWORD, domain_id=domain)
        for role in granted:
            cloud.identity.assign_project_role_to_user(project, u, roles[role])

    for name, kind, url in SERVICES:
        user(name, service, ["admin", "service"])
        made = cloud.identity.create_service(name=name, type=kind)
        for interface in ("public", "internal", "admin"):
            cloud.identity.create_endpoint(service_id=made.id, interface=interface, url=url, region_id="RegionOne")
    user("lab", lab, ["member", "reader"])


def resources(cloud):
    for name, vcpus, ram, disk in GPU_FLAVORS + CPU_FLAVORS + LAB_FLAVORS:
        flavor = cloud.compute.create_flavor(id=name, name=name, vcpus=vcpus, ram=ram, disk=disk)
        if name.startswith("gpu_"):
            cloud.compute.create_flavor_extra_specs(flavor, {"pci_passthrough:alias": "tesla-v100:1"})
    # The same link that the machine outside has an end of, so that servers reach
    # it and it reaches them.
    network = cloud.network.create_network(name="lab", is_shared=True)
    cloud.network.create_subnet(
        network_id=network.id, name="lab", ip_version=4, cidr="198.18.0.0/20", gateway_ip="198.18.0.1",
        allocation_pools=[{"start": "198.18.1.0", "end": "198.18.15.254"}])
    with open("/etc/lab/bridge", "w") as f:
        f.write("brq" + network.id[:11] + "\n")  # as Neutron will call it
    # A disk that nothing boots from, for the fake hypervisor.
    image = cloud.image.create_image(
        name="empty", disk_format="raw", container_format="bare", visibility="public",
        data=b"\0" * (1 << 20))
    status = cloud.image.get_image(image.id).status
    if status != "active":
        raise SystemExit("the image is " + status)


{"identity": identity, "resources": resources}[sys.argv[1]](openstack.connect(cloud="admin"))
