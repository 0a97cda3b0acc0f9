"""Nova's fake hypervisor with PCI devices.

Nova loads drivers of its own package only, so this file is put into nova.virt.
The devices are the GPUs that "gpuserver host inspect" found in the seed's machine.
"""
import json

from nova.virt import fake


def devices(path="/lab/host.json"):
    """The machine's GPUs in the form that drivers report devices in."""
    with open(path) as f:
        gpus = json.load(f)["gpus"]
    found = []
    for gpu in gpus:
        address = gpu["address"]
        found.append({
            "dev_id": "pci_" + address.replace(":", "_").replace(".", "_"),
            "address": address,
            "vendor_id": gpu["vendor_id"],
            "product_id": gpu["device_id"],
            "label": "label_%s_%s" % (gpu["vendor_id"], gpu["device_id"]),
            "dev_type": "type-PCI",
            "status": "available",
            "parent_addr": None,
            "numa_node": None if gpu["numa_node"] < 0 else gpu["numa_node"],
        })
    return found


class Driver(fake.FakeDriver):
    """The seed's machine: 48 cores, about 500 GB of memory, six cards."""

    vcpus = 48
    memory_mb = 512000
    local_gb = 3000

    def get_available_resource(self, nodename):
        resources = super().get_available_resource(nodename)
        resources["pci_passthrough_devices"] = json.dumps(devices())
        return resources
